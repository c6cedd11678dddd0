"""What a profile shows: communication, how much of it was exposed, and what hid the rest."""

from __future__ import annotations

from farskip_compile.profiling.errors import (
    NoCollectivesError,
    NotATraceError,
    RanksMissingError,
    TraceError,
    TruncatedTraceError,
)
from farskip_compile.profiling.overlap import overlap
from farskip_compile.profiling.read import read_trace
from farskip_compile.profiling.report import CollectiveReport, Hider, Overlap, OverlapReport, PartReport, RankReport
from farskip_compile.profiling.trace import Collective, Device, Trace

__all__ = [
    "Collective",
    "CollectiveReport",
    "Device",
    "Hider",
    "NoCollectivesError",
    "NotATraceError",
    "Overlap",
    "OverlapReport",
    "PartReport",
    "RankReport",
    "RanksMissingError",
    "Trace",
    "TraceError",
    "TruncatedTraceError",
    "overlap",
    "read_trace",
]
