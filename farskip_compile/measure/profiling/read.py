# SPDX-License-Identifier: Apache-2.0
"""The way in: a Chrome trace file, an export of Nsight Systems, or a `torch.profiler` object.

In:    the path of a trace that `torch.profiler` exported (`.json`, `.json.gz`), of a file of `merge_traces`, or
       of a database that Nsight Systems exported (`nsys export --type sqlite`), told apart by content; or a profile
       that has ended.
Out:   a `Trace` of each rank.
Never: changes the profile; keeps the raw events.
"""

from __future__ import annotations

import tempfile
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from farskip_compile.measure.profiling.chrome import LARGEST, TraceError, from_document, is_merged, load, split_ranks
from farskip_compile.measure.profiling.data import Trace
from farskip_compile.measure.profiling.nsys import is_database, read_database


@runtime_checkable
class Profile(Protocol):
    """The type of `torch.profiler.profile` and `torch.autograd.profiler.profile`."""

    def export_chrome_trace(self, path: str) -> Any:
        """Write the trace to `path`."""


TraceSource = str | PathLike[str] | Profile


def read_trace(source: TraceSource, *, rank: int | None = None, largest: int = LARGEST) -> Trace:
    """Read the profile of one rank.

    Args:
        source: a file, or a profile whose `with` block has ended and that was not exported before.
        rank: the rank, if the profile does not know it (profiles taken before `init_process_group`).
        largest: bytes that a file may have, unpacked.

    Raises:
        TraceError: the file can't be read, it holds several ranks, or the profile has nothing to export.
        NotATraceError: the file is neither a Chrome trace nor an export of Nsight Systems.
        TruncatedTraceError: the file ends in the middle.
    """
    traces = read_traces(source, rank=rank, largest=largest)
    if len(traces) != 1:
        raise TraceError(
            f"{source} holds the traces of {len(traces)} ranks",
            way_out="read them with read_traces, which gives a trace for each",
        )
    return traces[0]


def read_traces(source: TraceSource, *, rank: int | None = None, largest: int = LARGEST) -> tuple[Trace, ...]:
    """Read the profiles of all ranks in `source`.

    There are several if `merge_traces` wrote the file, or if Nsight Systems profiled a launcher such as torchrun.
    Merged traces know their ranks. Those of Nsight Systems do not, and are in the order of the GPUs that the processes
    use.

    Args:
        source: as in `read_trace`.
        rank: as in `read_trace`.
        largest: bytes that a file may have, unpacked.

    Raises:
        TraceError: the file can't be read, or the profile has nothing to export.
        NotATraceError: as in `read_trace`.
        TruncatedTraceError: as in `read_trace`.
    """
    if isinstance(source, (str, PathLike)):
        path = Path(source)
        if is_database(path):
            return read_database(path, rank=rank, largest=largest)
        document = load(path, largest=largest)
        if is_merged(document):
            ranks = split_ranks(document, str(path)).items()
            return tuple(from_document(one, f"{path} (rank {number})", rank=number) for number, one in ranks)
        return (from_document(document, str(path), rank=rank),)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        try:
            source.export_chrome_trace(str(path))
        except (RuntimeError, AssertionError) as error:
            raise TraceError(
                f"the profile can't be exported: {error}",
                way_out="read it after its `with` block, and once; if it was exported before, read that file instead",
            ) from None
        return (from_document(load(path, largest=largest), "profile", rank=rank),)
