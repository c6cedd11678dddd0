# SPDX-License-Identifier: Apache-2.0
"""One process at a time writes into a folder, and what a killed process has left there goes.

In:    a folder, or a file.
Out:   `exclusive`: the folder is this process's until the block ends, and holds no temporaries (`TEMPORARY`) of others;
       `hold`: a lock on any file or folder, exclusive or shared.
Never: waits; keeps a lock when its process has ended, however that was: the system holds it (`flock`). Where the file
       system has no locks, nothing is locked and nothing is removed.

The lock is on the file `.farskip-lock` in the folder, which stays there, and says who holds it. Within one process the
same folder may be taken again: a step of a healing locks what the healing has locked.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from farskip_compile.errors import ConfigError


def _posix() -> Any:
    try:
        import fcntl
    except ImportError:  # another system
        return None
    return fcntl


fcntl = _posix()
"""The module; None where there is none."""
FILE = ".farskip-lock"
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12,16}\.writing")
"""Names of files and folders that are being written."""
DEEP = 3
"""Levels of folders in which temporaries are looked for."""

_mine: dict[Path, int] = {}
"""Folder that this process has locked -> how often."""
_lock = threading.Lock()


class Busy(Exception):
    """Somebody else holds the lock."""


def hold(path: Path, *, shared: bool = False) -> int | None:
    """Lock an existing file or folder until the descriptor that is returned is closed; None: there are no locks here.

    Raises:
        Busy: somebody else holds a lock that does not go with this one.
        OSError: `path` can't be opened.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Busy(str(path)) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def exclusive(folder: Path, way_out: str) -> Iterator[None]:
    """Have `folder`, which is made if it is not there, for this process alone.

    Raises:
        ConfigError: another process has it; the folder can't be made or written.
    """
    key = folder.resolve()
    with _lock:
        first = key not in _mine
        if first:
            descriptor = _taken(folder, way_out)
        _mine[key] = _mine.get(key, 0) + 1
    try:
        if first and descriptor is not None:
            sweep(folder)
        yield
    finally:
        with _lock:
            _mine[key] -= 1
            if not _mine[key]:
                del _mine[key]
        if first and descriptor is not None:
            os.close(descriptor)


def _taken(folder: Path, way_out: str) -> int | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = hold(folder / FILE)
        if descriptor is not None:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
    except OSError as error:
        raise ConfigError(f"can't write into the folder {folder}: {error.strerror}", way_out=way_out) from error
    except Busy:
        with contextlib.suppress(OSError, ValueError):
            who = (folder / FILE).read_text()[:200].strip()
        raise ConfigError(
            f"another run writes into {folder} at this moment: {who or 'another process'}",
            way_out=f"wait until it has ended, or end it; {way_out}",
        ) from None
    return descriptor


def sweep(folder: Path, deep: int = DEEP) -> None:
    """Remove temporaries in a folder that nobody writes into, and in the folders in it."""
    with contextlib.suppress(OSError):
        for entry in sorted(folder.iterdir()):
            if TEMPORARY.fullmatch(entry.name):
                remove(entry)
            elif deep > 1 and entry.is_dir() and not entry.is_symlink():
                sweep(entry, deep - 1)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there and may be removed."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
