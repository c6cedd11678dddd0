"""Errors about traces, all under `FarSkipError`.

Contract: each names the file, what is wrong with it, and what to do.
"""

from __future__ import annotations

from farskip_compile.errors import FarSkipError


class TraceError(FarSkipError):
    """A trace that can't be used: unreadable, or of a rank that is there twice."""


class NotATraceError(TraceError):
    """A file that is not a Chrome trace of `torch.profiler`."""


class TruncatedTraceError(TraceError):
    """A trace file that ends in the middle, such as that of a process killed while writing."""


class NoCollectivesError(TraceError):
    """No trace holds a collective, so there is no communication to report on."""


class RanksMissingError(TraceError):
    """A question about all ranks, when only some have traces."""
