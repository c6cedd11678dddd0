# SPDX-License-Identifier: Apache-2.0
"""Overlap reports: communication in a profile, how much of it was exposed, and which kernels hid the rest.

    report = record(step, path="trace{rank}.json")              # on every rank; this rank's report
    report = overlap([read_trace(path) for path in paths])      # of all ranks; `farskip overlap` does the same
    report = overlap(read_traces("node.sqlite"))                # all ranks of a node, by Nsight Systems

Exposed is the time during which a collective is in flight and no compute of the same rank runs; overlap is
1 - exposed / communication. Both are measured on unions of intervals, on CPU with gloo and on CUDA or HIP streams.
`raw.py` defines compute, by names in `events.py` (host) and `gpu_families.py` (GPU); in doubt, less counts. On a GPU,
communication is the work of NCCL, RCCL, NVSHMEM, DeepEP, symmetric memory and custom all-reduces, and copies between
GPUs; a kernel that NCCL calls SendRecv has the name of the operator that launched it (`launches.py`). A collective is
in flight while its event lasts, not while it queues. On each rank this includes the wait for ranks that come later,
which `overlap(..., subtract_peer_wait=True)` subtracts if the traces of all ranks are given.
"""

from __future__ import annotations

from farskip_compile.measure.profiling.chrome import NoCollectivesError, TraceError
from farskip_compile.measure.profiling.data import OverlapReport, RankReport, Trace
from farskip_compile.measure.profiling.measure import overlap
from farskip_compile.measure.profiling.page import overlap_page
from farskip_compile.measure.profiling.read import read_trace, read_traces
from farskip_compile.measure.profiling.recording import kernels_visible, merge_traces, record
from farskip_compile.measure.profiling.text import report_text

__all__ = [
    "NoCollectivesError",
    "OverlapReport",
    "RankReport",
    "Trace",
    "TraceError",
    "kernels_visible",
    "merge_traces",
    "overlap",
    "overlap_page",
    "read_trace",
    "read_traces",
    "record",
    "report_text",
]
