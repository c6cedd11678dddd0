# SPDX-License-Identifier: Apache-2.0
"""Damaged caches of a teacher: the old logits, or an error; never others, never another exception."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.errors import ConfigError, DistillationError, FarSkipError
from farskip_compile.healing.causal.batches import as_batch
from farskip_compile.healing.causal.teacher import FrozenTeacher
from farskip_compile.healing.distill.teacher_cache import CachedTeacher
from tests.distill.common import small
from tests.distill.damage import DATA, QUICK, Kept, damages, result_of
from tests.test_json_files import not_a_file


class Caches:
    """A cache of two batches, and what it says."""

    def __init__(self, folder: Path, copy: Path) -> None:
        self.folder, self.data = folder, [as_batch(one, torch.device("cpu")) for one in DATA[:2]]
        cached = self.open()
        cached.fill(self.data, FrozenTeacher(small(), copied=False))
        self.said = [cached(batch) for batch in self.data]
        self.kept = Kept(folder, copy)

    def open(self) -> CachedTeacher:
        return CachedTeacher(self.folder, {"model": "a"}, k=4)

    def ask(self, damaged: str) -> None:
        """Whoever needs the file `damaged` gets an error; others what they got before."""
        cached = result_of(self.open)
        if isinstance(cached, FarSkipError):
            assert damaged.endswith(".json"), cached
            assert cached.way_out
            return
        for number, batch in enumerate(self.data):
            found = result_of(lambda batch=batch: cached(batch))
            if damaged == f"0-{number:06d}.safetensors":
                assert isinstance(found, DistillationError)
                assert "remove" in found.way_out
            else:
                assert torch.equal(found.values, self.said[number].values)
                assert torch.equal(found.indices, self.said[number].indices)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Caches:
    folder = tmp_path_factory.mktemp("caches")
    return Caches(folder / "cache", folder / "copy")


@QUICK
@given(st.data())
def test_changed_caches(caches: Caches, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(caches.kept.files))
    data.draw(damages(caches.folder / file))(caches.folder / file)
    try:
        caches.ask(file.name)
    finally:
        caches.kept.again()


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a link to itself", "too large", "nested"])
def test_caches_that_are_none(caches: Caches, kind: str) -> None:
    for file in caches.kept.files:
        try:
            (caches.folder / file).unlink()
            not_a_file(caches.folder / file, kind)
            caches.ask(file.name)
        finally:
            caches.kept.again()


def test_the_way_out_of_a_damaged_cache(caches: Caches) -> None:
    """The entry is removed, and the original asked again about its sequences only."""
    try:
        os.truncate(caches.folder / "0-000001.safetensors", 3)
        with pytest.raises(DistillationError, match="has 3 bytes") as caught:
            caches.open()(caches.data[1])
        entry = caches.folder / "0-000001.json"
        assert f"remove {entry}" in caught.value.way_out
        entry.unlink()
        again = caches.open()
        assert again.fill(caches.data, FrozenTeacher(small(), copied=False)) == 1
        caches.ask("")
    finally:
        caches.kept.again()


def test_entries_of_another_folder_are_refused(caches: Caches) -> None:
    """Also where the file is gone that says whose logits they are."""
    try:
        (caches.folder / "about-0.json").unlink()
        with pytest.raises(ConfigError, match="of something else"):
            CachedTeacher(caches.folder, {"model": "b"}, k=4)
    finally:
        caches.kept.again()


def test_a_file_where_the_cache_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't make the folder"):
        CachedTeacher(tmp_path / "file", {}, k=4)
