# SPDX-License-Identifier: Apache-2.0
"""Work that is ended at each of its operations on files: by SIGKILL, or by a disk that is full from then on.

In:    what is to be done, and a folder. Operations on files in that folder are counted, as Python's audit hooks see
       them (opened for writing, made, renamed, removed).
Out:   `interrupted`: for each operation, does the work in a forked process that ends there; the caller looks at what
       is left, and goes on with a fresh folder.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "open", "os.listdir"}
"""`os.replace` is `os.rename` for audit hooks, and `os.unlink` is `os.remove`."""
MOST = 1000
ENDED = 77


def interrupted(
    work: Callable[[], object], folders: Iterator[Path], full: bool, each: int = 1
) -> Iterator[tuple[int, Path]]:
    """Yield the number of the operation and the folder after each interruption, until the work gets through.

    Args:
        work: done in a forked process, which has the folder as its current one.
        folders: a new one for each time, prepared by the caller.
        each: 1 for each operation, 3 for every third one.
        full: whether this and all further operations fail, as on a full disk, instead of SIGKILL.
    """
    for number in range(0, MOST, each):
        folder = next(folders)
        if (child := os.fork()) == 0:
            _work(work, folder, number, full)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, ENDED, -signal.SIGKILL), code
        yield number, folder
        if code == 0:
            return
    raise AssertionError("it never gets through")


def _work(work: Callable[[], object], folder: Path, number: int, full: bool) -> None:
    os.chdir(folder)
    left = number

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if event not in OPERATIONS or not _is_inside(args[0], folder) or (event == "open" and not _writes(args)):
            return
        left -= 1
        if left < 0 and not full:
            os.kill(os.getpid(), signal.SIGKILL)
        if left < 0 and event not in ("os.remove", "os.rmdir", "os.listdir"):  # these need no room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sys.addaudithook(hook)
    try:
        work()
    except BaseException:
        os._exit(ENDED)
    os._exit(0)


def _is_inside(path: object, folder: Path) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    return os.path.abspath(os.fsdecode(path)).startswith(str(folder))


def _writes(args: tuple[object, ...]) -> bool:
    flags = args[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
