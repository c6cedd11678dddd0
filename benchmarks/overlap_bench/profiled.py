# SPDX-License-Identifier: Apache-2.0
"""What the profiler shows of one step: communication that nothing hid, forward and backward separately; peak memory.

Contract: every rank makes the same calls. *Exposed* is that of `farskip_compile.measure.profiling`. The backward pass
begins where `steps.py` marked it; no collective is in flight there, since the loss needs all of them. Seconds, and
bytes over what was allocated before the step. A step gives up all that it makes.

The profiler sees allocations and frees of the thread that runs the step. gloo's own thread holds what a collective
sends and receives until it is done, and lets go of it a moment after a wait has returned: where the step waits at once
and needs the memory no longer, gloo's thread frees it last, and the profiler never sees that. So memory is profiled in
steps of their own, in which each wait of a program that Inductor generated returns a little later. What still is never
freed, by eager code, which need not keep a message until it waits, counts as freed when a later block takes its place,
or when the first collective launched after its allocation is done, whichever is first.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from farskip_compile.measure.profiling import Trace, record
from farskip_compile.measure.profiling.chrome import load
from farskip_compile.measure.profiling.intervals import Span, difference, intersection, total, union
from overlap_bench.steps import BACKWARD

Figures = dict[str, Any]

LATE = 1e-3
"""Seconds by which waits return later while memory is profiled; gloo's thread needs some microseconds."""

STEPS = 2
"""Profiled for memory."""


def exposure(run: Callable[[], Any], times: int, keep: Path | None = None) -> Figures:
    """The profiled step with the median exposure.

    Figures are seconds of `communication`, `exposed`, `compute`, and `waiting`: the part of `exposed` in which another
    rank had not launched that collective yet; with a backward pass, also of `forward` and `backward`, except `compute`.

    Of `times` steps, one at least, `keep` is for the first one's trace.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(times):
            path = keep if number == 0 and keep is not None else Path(folder) / f"{number}.json"
            dist.barrier()
            (trace,) = record(run, path=path, warmup=0).traces
            found.append(figures_of(trace, backward_start(load(path)), joined(trace)))
    found.sort(key=itemgetter("exposed"))
    return found[len(found) // 2]


def peak_memory(run: Callable[[], Any]) -> int:
    """Bytes: the least peak of some steps, since gloo's thread may be held up for longer than a wait returns late."""
    peaks = []
    with tempfile.TemporaryDirectory() as folder, _waits_return_late():
        for number in range(STEPS):
            path = Path(folder) / f"{number}.json"
            dist.barrier()
            (trace,) = record(run, path=path, warmup=0, memory=True).traces
            document = load(path)
            base = document.get("baseTimeNanoseconds") or 0
            flights = [(one.start - base, one.end - base) for one in trace.collectives]
            peaks.append(peak_of(document["traceEvents"], flights))
    return min(peaks)


@contextmanager
def _waits_return_late() -> Iterator[None]:
    """Inductor's programs look this overload up whenever they call it; Dynamo's guards don't."""
    packet = torch.ops._c10d_functional.wait_tensor
    wait = packet.default

    def late(tensor: torch.Tensor) -> torch.Tensor:
        waited: torch.Tensor = wait(tensor)
        time.sleep(LATE)
        return waited

    with mock.patch.object(packet, "default", late):
        yield


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


def peak_of(events: Iterable[dict[str, Any]], flights: Iterable[tuple[float, float]] = ()) -> int:
    """The highest sum of the CPU's allocations and frees.

    Times of `events`, from a Chrome trace, are in microseconds; `flights`, when each collective begins and ends, in
    nanoseconds.
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
        seen.append((min(at, next((end for start, end in in_order if start >= begin), at)), -size))

    for at, address, size in changes:
        if size > 0:
            for other in [a for a, (_, n) in alive.items() if a < address + size and address < a + n]:
                forget(other, at)
            alive[address] = (at, size)
        else:
            alive.pop(address, None)
        seen.append((at, size))
    for address in list(alive):
        forget(address, float("inf"))
    held = peak = 0
    for _, change in sorted(seen, key=itemgetter(0)):
        held += change
        peak = max(peak, held)
    return peak
