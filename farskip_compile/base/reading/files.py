# SPDX-License-Identifier: Apache-2.0
"""The bytes of a file, packed or not, within a bound.

In:    a path.
Out:   the content of a regular file.
Never: waits for a pipe, reads a device, or holds more than was asked for: a packed file is refused as soon as it has
       unpacked to too much, in itself or for what was read of it.
"""

from __future__ import annotations

import errno
import gzip
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

DOCUMENT_BYTES = 2 * 2**20
"""Of manifests, profiles and configurations: the largest ones that are known have a tenth of it. Parsed, any JSON of
this size takes less than 100 MB."""
MOST_PACKED, UNPACKED_ANYWAY = 100, 16 * 2**20
"""A file in gzip may unpack to this many times its own size, and to so many bytes whatever its size. JSON of profilers
unpacks to 10 to 30 times its size; what was made to fill a memory, to 1000 times."""
_PIECE = 2**20


class TooLarge(OSError):
    """A file with more in it than it may have."""


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: it is anything else, such as a pipe, for which `open` would wait; or it can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, largest: int = DOCUMENT_BYTES) -> bytes | bytearray:
    """Return the content of a regular file.

    Raises:
        OSError: it can't be read, is not a regular file, or (`TooLarge`) has more than `largest` bytes.
    """
    with open_file(path) as file:
        return _plain(file, path, largest)


def read_unpacked(path: Path, largest: int) -> bytes | bytearray:
    """Return the content of a regular file, unpacked if it is in gzip.

    Raises:
        OSError: as `read_bytes`; or (`TooLarge`) it unpacks to more than `largest` bytes, or to far more than its size.
        EOFError, gzip.BadGzipFile, zlib.error: it ends in the middle, or is damaged.
    """
    with open_file(path) as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            return _plain(file, path, largest)
        content = bytearray()
        with gzip.GzipFile(fileobj=file) as unpacking:
            while piece := unpacking.read(_PIECE):
                content += piece
                if len(content) > largest:
                    raise TooLarge(errno.EFBIG, f"Unpacks to more than {largest:,} bytes", str(path))
                if len(content) > max(UNPACKED_ANYWAY, MOST_PACKED * file.tell()):
                    reason = f"Unpacks to more than {MOST_PACKED} times its size"
                    raise TooLarge(errno.EFBIG, reason, str(path))
        return content


def _plain(file: BinaryIO, path: Path, largest: int) -> bytes | bytearray:
    size = os.fstat(file.fileno()).st_size
    content = bytearray()
    while size <= largest and len(content) <= largest and (piece := file.read(_PIECE)):  # room is made for each piece
        content += piece
    if max(size, len(content)) > largest:
        raise TooLarge(errno.EFBIG, f"Has more than {largest:,} bytes", str(path))
    return content
