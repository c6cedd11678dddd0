# SPDX-License-Identifier: Apache-2.0
"""Reads a Chrome trace file: JSON, or JSON in gzip, as `torch.profiler` exports it.

Contract: gives the document as a dictionary whose `traceEvents` is a list, or raises a `TraceError` that names the
file, what is wrong with it, and what to do. The file is read whole; 200 MB take a few seconds. Anything but a regular
file is refused, and so is one that is, or unpacks to, more than the limit (`reading.files`), before it has cost much.
What is not a number (`NaN`, `Infinity`) is read as `null`. Where an object has a key twice, the last one counts.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from farskip_compile.base.reading.files import TooLarge, read_unpacked
from farskip_compile.base.reading.strict_json import check_nesting
from farskip_compile.errors import FarSkipError
from farskip_compile.passes.gc_pause import collector_paused

Document = dict[str, Any]
SQLITE = "SQLite format 3\0"
"""How a file of SQLite begins."""
LATEST = 2**62
"""Nanoseconds since the epoch, in the year 2116: later than any time of a profile."""
LARGEST = 2**30
"""Bytes of a trace, unpacked, unless its reader is told otherwise."""

_EXPORT = (
    "give a file that torch.profiler's export_chrome_trace wrote, or farskip_compile.measure.profiling.record, or "
    "`nsys export --type sqlite`"
)
_CUT_OFF = "let the process that writes it finish, and export the trace again"


class TraceError(FarSkipError):
    """A trace that can't be used: unreadable, or of a rank that is there twice."""


class NotATraceError(TraceError):
    """A file that is neither a Chrome trace of `torch.profiler` nor an export of Nsight Systems."""


class TruncatedTraceError(TraceError):
    """A trace file that ends in the middle, such as that of a process killed while writing."""


class NoCollectivesError(TraceError):
    """No trace holds a collective, so there is no communication to report on."""


class RanksMissingError(TraceError):
    """A question about all ranks, when only some have traces."""


def load(path: Path, *, largest: int = LARGEST) -> Document:
    """The document in `path`, which may have `largest` bytes, unpacked.

    Raises:
        TraceError: the file can't be read.
        NotATraceError: it is not a Chrome trace.
        TruncatedTraceError: it ends in the middle.
    """
    text = _text(path, largest)
    if text.startswith(SQLITE):
        raise NotATraceError(
            f"{path} is a database, not a Chrome trace",
            way_out="`farskip overlap` and read_trace read exports of Nsight Systems; merge Chrome traces alone",
        )
    try:
        with collector_paused():
            document = json.loads(text, strict=False, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        whole = text.strip()
        cut_off = whole[:1] in ("{", "[") and whole[-1:] not in ("}", "]")
        if cut_off or error.pos >= len(text.rstrip()):
            raise TruncatedTraceError(f"{path} ends in the middle of the trace", way_out=_CUT_OFF) from None
        raise NotATraceError(f"{path} is not JSON: {error}", way_out=_EXPORT) from None
    except ValueError as error:  # an integer of thousands of digits
        raise NotATraceError(f"{path} has a number that no trace has: {error}", way_out=_EXPORT) from None
    if isinstance(document, list):  # the bare form of the format: events, and nothing about them
        document = {"traceEvents": document}
    if not isinstance(document, dict) or not isinstance(document.get("traceEvents"), list):
        raise NotATraceError(f"{path} holds JSON, but no traceEvents: it is not a Chrome trace", way_out=_EXPORT)
    return document


def _text(path: Path, largest: int) -> str:
    try:
        content = read_unpacked(path, largest)
        check_nesting(content)
    except EOFError:
        raise TruncatedTraceError(f"{path} ends in the middle of its gzip stream", way_out=_CUT_OFF) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise NotATraceError(f"{path} is a damaged gzip file: {error}", way_out=_EXPORT) from None
    except TooLarge as error:
        raise TraceError(
            f"can't read {path}: {error.strerror}",
            way_out="if you trust the file: unpack it (gzip -d), and raise the limit "
            "(farskip overlap --largest, read_trace(..., largest=))",
        ) from None
    except OSError as error:
        raise TraceError(
            f"can't read {path}: {error.strerror}", way_out="give the path of a file that can be read"
        ) from None
    except ValueError:
        raise NotATraceError(f"{path} is nested too deeply for a trace", way_out=_EXPORT) from None
    if not content.strip():
        raise TruncatedTraceError(f"{path} is empty", way_out=_CUT_OFF)
    return content.decode("utf-8", errors="replace")  # kernels may have any name; JSON itself is ASCII
