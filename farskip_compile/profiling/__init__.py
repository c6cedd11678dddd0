"""What a profile shows: communication, how much of it was exposed, and what hid the rest."""

from __future__ import annotations

from farskip_compile.profiling.errors import (
    NoCollectivesError,
    NotATraceError,
    RanksMissingError,
    TraceError,
    TruncatedTraceError,
)
from farskip_compile.profiling.html_page import overlap_page
from farskip_compile.profiling.measure import overlap
from farskip_compile.profiling.merge import merge_traces
from farskip_compile.profiling.read import read_trace
from farskip_compile.profiling.recording import kernels_visible, record
from farskip_compile.profiling.report import CollectiveReport, Hider, Overlap, OverlapReport, PartReport, RankReport
from farskip_compile.profiling.text import report_text
from farskip_compile.profiling.timeline import timeline_svg
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
    "kernels_visible",
    "merge_traces",
    "overlap",
    "overlap_page",
    "read_trace",
    "record",
    "report_text",
    "timeline_svg",
]
