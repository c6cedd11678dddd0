"""What the profiler says of one step: communication that nothing hid, forward and backward apart; peak memory.

Contract: every rank makes the same calls. Exposed is what `farskip_compile.profiling` calls so. The backward pass
begins where `steps.py` has marked it; no collective is in flight there, since the loss needs all of them. Seconds, and
bytes over what was allocated before the step. Accounts of memory may hold a message a little too long (`memory.py`),
and how long hangs on chance: of several steps the least peak counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from farskip_compile.profiling import Trace, record
from farskip_compile.profiling.chrome import load
from farskip_compile.profiling.intervals import Span, difference, intersection, total, union
from overlap_bench.memory import peak_bytes
from overlap_bench.steps import BACKWARD

Figures = dict[str, Any]


def exposure(
    run: Callable[[], Any], times: int, messages: Collection[int], keep: Path | None = None
) -> tuple[Figures, int]:
    """Of `times` profiled steps the one with the median exposure: seconds of `communication`, `exposed`, `compute`, and
    `waiting`, the part of `exposed` in which another rank had not launched that collective yet; where there is a
    backward pass, the same of `forward` and of `backward`, but for `compute`. And the peak memory.

    Args:
        run: the step.
        times: how many steps are profiled; at least one.
        messages: sizes in bytes of what its collectives send.
        keep: where the Chrome trace of the first is kept; None: nowhere.
    """
    found, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(times):
            path = keep if number == 0 and keep is not None else Path(folder) / f"{number}.json"
            dist.barrier()
            (trace,) = record(run, path=path, warmup=0, memory=True).traces
            document = load(path)
            found.append(figures_of(trace, backward_start(document), joined(trace)))
            peaks.append(peak_bytes(document, trace, messages))
    found.sort(key=lambda figures: figures["exposed"])
    return found[len(found) // 2], min(peaks)


def joined(trace: Trace) -> list[int]:
    """When the last rank has launched each collective of this rank, in their order; clocks of one host agree."""
    launched = sorted(one.start for one in trace.collectives)
    found: list[list[int]] = [[]] * dist.get_world_size()
    dist.all_gather_object(found, launched)
    return [max(times) for times in zip(*found, strict=True)]


def figures_of(trace: Trace, start: int | None, joined: Sequence[int]) -> Figures:
    """Of one trace; `start` of the backward pass in nanoseconds, None if there is none; `joined` as above."""
    lanes = (*trace.work.values(), *trace.copies.values())
    compute = union((begin, end) for lane in lanes for begin, end, _ in lane)
    in_order = sorted((one.start, one.end) for one in trace.collectives)
    flying = union(in_order)
    moving = union((min(last, end), end) for (_, end), last in zip(in_order, joined, strict=True))
    figures: Figures = {**_share(flying, moving, compute), "compute": total(compute) / 1e9}
    if start is not None and flying:
        first, last = min(flying[0][0], start), max(flying[-1][1], start)
        for name, part in (("forward", [(first, start)]), ("backward", [(start, last)])):
            figures[name] = _share(intersection(flying, part), intersection(moving, part), compute)
    return figures


def _share(flying: list[Span], moving: list[Span], compute: list[Span]) -> dict[str, float]:
    exposed = difference(flying, compute)
    waiting = total(exposed) - total(intersection(exposed, moving))
    return {"communication": total(flying) / 1e9, "exposed": total(exposed) / 1e9, "waiting": waiting / 1e9}


def backward_start(document: dict[str, Any]) -> int | None:
    """When the backward pass begins, on the clock of `Trace`; None: the step has none."""
    base = document.get("baseTimeNanoseconds") or 0
    starts = (event["ts"] for event in document["traceEvents"] if event.get("name") == BACKWARD)
    found = min(starts, default=None)
    return None if found is None else base + round(found * 1000)
