# SPDX-License-Identifier: Apache-2.0
"""Tensors come back from disk as they were, or not at all."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.errors import ConfigError, DistillationError
from farskip_compile.healing.causal.tensor_files import Seal, library, local, read_tensors, write_tensors
from tests.test_json_files import not_a_file

SHARED = torch.arange(6.0)
TENSORS = {
    "number": torch.tensor(1.5, dtype=torch.float64),
    "empty": torch.empty(0, 3),
    "half": torch.randn(3, 2).to(torch.bfloat16),
    "flags": torch.tensor([True, False]),
    "complex": torch.randn(3, dtype=torch.complex64),
    "double complex": torch.randn(2, 2, dtype=torch.complex128),
    "columns": torch.arange(6).view(2, 3).T,
    "whole": SHARED,
    "part": SHARED[2:4],
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    found = read_tensors(path, write_tensors(path, TENSORS), "")
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found[name].dtype == local(value).dtype
        assert torch.equal(found[name], local(value)), name
    assert path.stat().st_mode & 0o444 == 0o444 & ~umask()
    assert list(tmp_path.iterdir()) == [path]


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_of_a_dtensor_the_part_of_this_rank(tmp_path: Path) -> None:
    with fake_ranks(2):
        value = DTensor.from_local(torch.arange(4.0).view(2, 2), init_device_mesh("cpu", (2,)), [Shard(0)])
        assert value.shape == (4, 2)
        path = tmp_path / "one.safetensors"
        found = read_tensors(path, write_tensors(path, {"it": value}), "")
        local(value).zero_()
        assert torch.equal(found["it"], torch.arange(4.0).view(2, 2))
        assert torch.equal(value.to_local(), torch.zeros(2, 2))


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    seal = write_tensors(path, {"a": torch.arange(3)})
    written = path.read_bytes()
    changes = [written[:cut] for cut in range(len(written))] + [written + b"\0"]
    changes += [written[:n] + bytes([byte ^ 1]) + written[n + 1 :] for n, byte in enumerate(written)]
    for changed in changes:
        path.write_bytes(changed)
        with pytest.raises(DistillationError, match=r"one\.safetensors (is damaged|has \d+ bytes)") as caught:
            read_tensors(path, seal, "another")
        assert caught.value.way_out == "another"


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a link to itself", "too large", "nothing"])
def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    not_a_file(tmp_path / "it", kind)
    with pytest.raises(DistillationError, match="it"):
        read_tensors(tmp_path / "it", Seal(3, "0"), "")


def test_a_sealed_file_that_holds_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "it"
    seal = write_tensors(path, {"a": torch.zeros(1)})
    path.write_bytes(b"\xff" * seal.bytes)
    with pytest.raises(DistillationError, match="can't read the tensors"):
        read_tensors(path, replace(seal, sha256=hashlib.sha256(path.read_bytes()).hexdigest()), "")


def test_what_cannot_be_written(tmp_path: Path) -> None:
    for path, tensors in [
        (tmp_path / "no" / "file", {"a": torch.zeros(1)}),
        (tmp_path / "sparse", {"a": torch.eye(2).to_sparse()}),
    ]:
        with pytest.raises(DistillationError, match="can't write the tensors"):
            write_tensors(path, tensors)
    assert list(tmp_path.iterdir()) == []


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ConfigError, match="files of safetensors") as caught:
        library()
    assert "farskip-compile[distill]" in caught.value.way_out
