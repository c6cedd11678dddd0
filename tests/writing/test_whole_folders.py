# SPDX-License-Identifier: Apache-2.0
"""The folder of a checkpoint, whatever ends the process that writes it, and whenever.

Class of fault: weights and what belongs to them (manifest, guard) are written one after the other, and a process ends
in between; what is left loads as something that it is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from farskip_compile.base.writing.locks import TEMPORARY
from farskip_compile.base.writing.whole_folders import FolderInTheMaking
from tests.interrupted import interrupted

OLD = {"config.json": "old", "model.safetensors": "old", "farskip.json": "old"}
NEW = {"config.json": "new", "model-00001-of-00002.safetensors": "new", "model-00002-of-00002.safetensors": "new",
       "model.safetensors.index.json": "new", "farskip.json": "new", "tokenizer/vocab.json": "new"}  # fmt: skip
MINE = {"README.md": "mine", "notes/a.txt": "mine"}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    every = (path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): path.read_text() for path in every}
    return {name: text for name, text in found.items() if not TEMPORARY.fullmatch(name.partition("/")[0])}


def save() -> None:
    making = FolderInTheMaking.of(Path("model"))
    try:
        making.begin()
        write(making.path, NEW)
        making.finish()
    finally:
        making.end()


def prepared(place: Path, before: dict[str, str]) -> Iterator[Path]:
    for number in itertools.count():
        (place / str(number)).mkdir()
        write(place / str(number) / "model", before)
        yield place / str(number)


@pytest.mark.parametrize("full", [False, True], ids=["killed", "disk full"])
@pytest.mark.parametrize("before", [{}, OLD | MINE], ids=["nothing there", "an earlier checkpoint there"])
def test_it_is_whole_or_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, str], full: bool
) -> None:
    seen = set()
    for number, folder in interrupted(save, prepared(tmp_path, before), full):
        found = read(folder / "model")
        files = {name: text for name, text in found.items() if name not in MINE}
        seen.add("new" if files == NEW else "old" if files == {**before} else "other")
        assert {name: found[name] for name in MINE if before} == (MINE if before else {})
        if files not in ({}, NEW, {name: text for name, text in before.items() if name not in MINE}):
            assert before, f"after {number} operations, something of a new folder was there"
            assert "config.json" not in files, "what a loader reads first"
            weights = {text for name, text in files.items() if name.startswith("model")}
            assert weights in (set(), {files.get("farskip.json")}), "weights of one checkpoint, with its manifest"
        monkeypatch.chdir(folder)
        save()  # the same again
        assert read(folder / "model") == NEW | (MINE if before else {})
        assert [path.name for path in folder.rglob(".*")] == []
    assert "new" in seen


def test_somebody_who_still_writes_is_left_alone(tmp_path: Path) -> None:
    """Two processes that save to one place: the second one takes nothing from the first."""
    first, second = (FolderInTheMaking.of(tmp_path / "model") for _ in range(2))
    first.begin()
    write(first.path, NEW)
    second.begin()
    write(second.path, OLD)
    first.finish()
    first.end()
    assert read(tmp_path / "model") == NEW
    with pytest.raises(OSError, match="not empty"):  # not there when it began, and another checkpoint now
        second.finish()
    second.end()
    assert read(tmp_path / "model") == NEW


def test_a_link_stays_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model").symlink_to("elsewhere")
    monkeypatch.chdir(tmp_path)
    save()
    assert (tmp_path / "model").is_symlink()
    assert read(tmp_path / "elsewhere") == NEW
