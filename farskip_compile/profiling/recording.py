"""Profiles a callable on the current rank, with the settings that the overlap report needs.

Contract: runs the callable `warmup` times, and once under the profiler. Every rank must do the same, as always with
collectives; nothing is communicated here. Each rank gets the report of itself: for all ranks together, give `path`,
read the files, and call `overlap` on all of them.

Fused kernels of Inductor on CPU have no profiler event unless they were compiled to have one. While `record` runs, or
inside `kernels_visible()`, they are. What was compiled before stays as it was: compile inside, or pass
`recompile=True`. On GPU all kernels have events anyway.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path

import torch
from torch.profiler import profile, supported_activities

from farskip_compile._compat.inductor import inductor_settings
from farskip_compile._compat.names import KERNEL_PROFILE
from farskip_compile.profiling.chrome import TraceError
from farskip_compile.profiling.data import OverlapReport
from farskip_compile.profiling.measure import overlap
from farskip_compile.profiling.read import SCHEDULES, read_trace
from farskip_compile.report.schedule import last_schedules


def kernels_visible() -> AbstractContextManager[None]:
    """Compile fused CPU kernels with profiler events, inside the `with` block. They cost about a microsecond."""
    return inductor_settings({KERNEL_PROFILE: True})


def record(
    fn: Callable[[], object],
    *,
    path: str | PathLike[str] | None = None,
    warmup: int = 1,
    recompile: bool = False,
    memory: bool = False,
) -> OverlapReport:
    """Profile one call of `fn` on this rank. What the scheduler expected of the graphs goes into the trace.

    Args:
        fn: a step that communicates, for example a forward and backward pass. It must wait for its own collectives.
        path: keep the Chrome trace in this file (`.json`, `.json.gz`). `{rank}` stands for the rank.
        warmup: calls before the one that is profiled, so that nothing compiles under the profiler.
        recompile: forget all code that this process has compiled (`torch.compiler.reset()`) first, so that it is
            compiled again with visible kernels.
        memory: keep allocations in the trace, too.

    Raises:
        NoCollectivesError: `fn` communicates nothing.
        TraceError: the trace can't be written.
    """
    if recompile:
        torch.compiler.reset()
    with kernels_visible(), tempfile.TemporaryDirectory() as folder:
        for _ in range(warmup):
            fn()
        _synchronize()
        with profile(activities=supported_activities(), profile_memory=memory) as prof:
            fn()
            _synchronize()
            prof.add_metadata_json(SCHEDULES, json.dumps([schedule.to_json() for schedule in last_schedules()]))
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        kept = Path(folder) / "trace.json" if path is None else Path(str(path).replace("{rank}", str(rank)))
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.open("a").close()  # the profiler reports a file that it can't open on its log only
            prof.export_chrome_trace(str(kept))
        except OSError as error:
            raise TraceError(
                f"can't write {kept}: {error.strerror}", way_out="give a path that can be written"
            ) from None
        return overlap(read_trace(kept))


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
