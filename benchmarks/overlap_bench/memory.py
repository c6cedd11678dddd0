"""Peak memory of one step, by the profiler.

Contract: bytes, over what was allocated before the step.

The profiler sees allocations and frees of the thread that runs the step. gloo's own thread holds what a collective
sends until it is over, and where the step waits at once, that thread is the last to let go of it: the profiler never
hears of it, and every message of the step would count as alive to its end. So a block as large as a message that is
never freed counts as freed when
* a later block takes its place, or
* the first collective that was launched after its allocation is over,
whichever is first. By the second rule it may count for a little too long.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from farskip_compile.profiling import Trace


def peak_bytes(document: dict[str, Any], trace: Trace, messages: Collection[int]) -> int:
    """Most bytes that a profiled step holds at once.

    Args:
        document: its Chrome trace.
        trace: the same, read.
        messages: sizes in bytes of what its collectives send.
    """
    base = document.get("baseTimeNanoseconds") or 0
    flights = [(one.start - base, one.end - base) for one in trace.collectives]
    return peak_of(document["traceEvents"], flights, messages)


def peak_of(
    events: Iterable[dict[str, Any]], flights: Iterable[tuple[float, float]] = (), messages: Collection[int] = ()
) -> int:
    """The highest sum of the allocations and frees of the CPU.

    Args:
        events: of a Chrome trace, times in microseconds.
        flights: when each collective begins and ends, in nanoseconds.
        messages: as for `peak_bytes`.
    """
    changes = sorted(
        (
            (1000 * event["ts"], event["args"]["Addr"], event["args"]["Bytes"])
            for event in events
            if event.get("name") == "[memory]" and event["args"].get("Device Type") == 0
        ),
        key=lambda change: change[0],
    )
    in_order = sorted(flights)
    alive: dict[int, tuple[float, int]] = {}
    seen: list[tuple[float, int]] = []

    def forget(address: int, at: float) -> None:
        """Freed by another thread, at the latest now."""
        begin, size = alive.pop(address)
        if size in messages:
            at = min([at, *_end_after(begin, in_order)])
        seen.append((at, -size))

    for at, address, size in changes:
        if size > 0:
            for other in [a for a, (_, n) in alive.items() if a < address + size and address < a + n]:
                forget(other, at)
            alive[address] = (at, size)
            seen.append((at, size))
        else:
            alive.pop(address, None)
            seen.append((at, size))
    for address, (_, size) in list(alive.items()):
        if size in messages:
            forget(address, float("inf"))
    held = peak = 0
    for _, change in sorted(seen, key=lambda one: one[0]):
        held += change
        peak = max(peak, held)
    return peak


def _end_after(begin: float, flights: Sequence[tuple[float, float]]) -> list[float]:
    """When the first collective that begins after `begin` ends; empty if none does."""
    return next(([end] for start, end in flights if start >= begin), [])
