"""What the profiler shows of one step: communication that nothing hid, forward and backward separately; peak memory.

Contract: every rank makes the same calls. *Exposed* is that of `farskip_compile.profiling`. The backward pass begins
where `steps.py` marked it; no collective is in flight there, since the loss needs all of them. Seconds, and bytes over
what was allocated before the step.

The profiler sees allocations and frees of the thread that runs the step. gloo's own thread holds what a collective
sends until it is done, and where the step waits at once, that thread frees it last: the profiler never sees that, and
every message of the step would count as alive to its end. So a block as large as a message that is never freed counts
as freed when a later block takes its place, or when the first collective launched after its allocation is done,
whichever is first. By the second rule it may count a little too long, by chance: the least peak of several steps
counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch.distributed as dist

from farskip_compile.profiling import Trace, record
from farskip_compile.profiling.chrome import load
from farskip_compile.profiling.intervals import Span, difference, intersection, total, union
from overlap_bench.steps import BACKWARD

Figures = dict[str, Any]


def exposure(
    run: Callable[[], Any], times: int, messages: Collection[int], keep: Path | None = None
) -> tuple[Figures, int]:
    """The profiled step with the median exposure, and the peak memory.

    Figures are seconds of `communication`, `exposed`, `compute`, and `waiting`: the part of `exposed` in which another
    rank had not launched that collective yet; with a backward pass, also of `forward` and `backward`, except `compute`.

    Of `times` steps, one at least, which send `messages` of these sizes in bytes, `keep` is for the first one's trace.
    """
    found, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(times):
            path = keep if number == 0 and keep is not None else Path(folder) / f"{number}.json"
            dist.barrier()
            (trace,) = record(run, path=path, warmup=0, memory=True).traces
            document = load(path)
            base = document.get("baseTimeNanoseconds") or 0
            flights = [(one.start - base, one.end - base) for one in trace.collectives]
            found.append(figures_of(trace, backward_start(document), joined(trace)))
            peaks.append(peak_of(document["traceEvents"], flights, messages))
    found.sort(key=itemgetter("exposed"))
    return found[len(found) // 2], min(peaks)


def joined(trace: Trace) -> list[int]:
    """When the last rank launched each collective of this rank, in order; the clocks of one machine agree."""
    launched = sorted(one.start for one in trace.collectives)
    found: list[list[int]] = [[]] * dist.get_world_size()
    dist.all_gather_object(found, launched)
    return [max(times) for times in zip(*found, strict=True)]


def figures_of(trace: Trace, start: int | None, joined: Sequence[int]) -> Figures:
    """Figures of one trace; `start` of the backward pass in nanoseconds, None if there is none; `joined` as above."""
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
    found = min((event["ts"] for event in document["traceEvents"] if event.get("name") == BACKWARD), default=None)
    return None if found is None else base + round(found * 1000)


def peak_of(
    events: Iterable[dict[str, Any]], flights: Iterable[tuple[float, float]] = (), messages: Collection[int] = ()
) -> int:
    """The highest sum of the CPU's allocations and frees.

    Times of `events`, from a Chrome trace, are in microseconds; `flights`, when each collective begins and ends, in
    nanoseconds; `messages` are the sizes in bytes of what the collectives send.
    """
    changes = sorted(
        (
            (1000 * event["ts"], event["args"]["Addr"], event["args"]["Bytes"])
            for event in events
            if event.get("name") == "[memory]" and event["args"].get("Device Type") == 0
        ),
        key=itemgetter(0),
    )
    in_order = sorted(flights)
    alive: dict[int, tuple[float, int]] = {}
    seen: list[tuple[float, int]] = []

    def forget(address: int, at: float) -> None:
        """Freed by another thread, at the latest now."""
        begin, size = alive.pop(address)
        if size in messages:
            at = min(at, next((end for start, end in in_order if start >= begin), at))
        seen.append((at, -size))

    for at, address, size in changes:
        if size > 0:
            for other in [a for a, (_, n) in alive.items() if a < address + size and address < a + n]:
                forget(other, at)
            alive[address] = (at, size)
        else:
            alive.pop(address, None)
        seen.append((at, size))
    for address, (_, size) in list(alive.items()):
        if size in messages:
            forget(address, float("inf"))
    held = peak = 0
    for _, change in sorted(seen, key=itemgetter(0)):
        held += change
        peak = max(peak, held)
    return peak
