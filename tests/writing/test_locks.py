# SPDX-License-Identifier: Apache-2.0
"""One process at a time writes into a folder; what killed ones have left there goes.

Class of fault: two runs write into one folder, and one of them fails later, for a reason that is not the reason; files
that nobody writes any more fill the disk.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from farskip_compile.base.json_files import replacing, write_text
from farskip_compile.base.writing import locks
from farskip_compile.errors import ConfigError


def hold_until_killed(folder: Path, ready: int) -> None:
    with locks.exclusive(folder, "another"), replacing(folder / "fold" / "weights") as temporary:
        temporary.write_text("large")
        os.write(ready, b"locked")
        time.sleep(600)


def test_another_process_is_named_and_what_it_leaves_when_it_is_killed_goes(tmp_path: Path) -> None:
    (tmp_path / "fold").mkdir()
    heard, ready = os.pipe()
    if (other := os.fork()) == 0:
        hold_until_killed(tmp_path, ready)
    assert os.read(heard, 6) == b"locked"
    try:
        with (
            pytest.raises(ConfigError, match=rf"another run writes into .* at this moment: process {other} on "),
            locks.exclusive(tmp_path, "another folder"),
        ):
            pass
        assert len([*(tmp_path / "fold").iterdir()]) == 1, "it is still written"
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert len([*(tmp_path / "fold").iterdir()]) == 1
    with locks.exclusive(tmp_path, "another folder"):
        assert [*(tmp_path / "fold").iterdir()] == []
        with locks.exclusive(tmp_path, "another folder"):  # a step of what has locked it
            write_text(tmp_path / "done", "")
        with pytest.raises(locks.Busy):
            locks.hold(tmp_path / locks.FILE)
    descriptor = locks.hold(tmp_path / locks.FILE)
    assert descriptor is not None
    os.close(descriptor)


def test_files_of_the_user_are_no_temporaries(tmp_path: Path) -> None:
    mine = [".config", ".a.writing", "a.0123456789abcdef.writing", ".a.0123456789abcdef", ".git.x.writing"]
    for name in mine:
        (tmp_path / name).touch()
    (tmp_path / ".model.0123456789ab.writing" / "deep").mkdir(parents=True)
    with locks.exclusive(tmp_path, "another folder"), replacing(tmp_path / "a") as temporary:
        temporary.touch()
        assert locks.TEMPORARY.fullmatch(temporary.name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*mine, "a", locks.FILE])


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known there of who writes, so nothing is removed."""

    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    (tmp_path / ".a.0123456789abcdef.writing").touch()
    with locks.exclusive(tmp_path, "another folder"):
        assert (tmp_path / ".a.0123456789abcdef.writing").exists()


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match="can't write into the folder"),
        locks.exclusive(tmp_path / "file", "another folder"),
    ):
        pass
