# SPDX-License-Identifier: Apache-2.0
"""What scheduling did to one compiled graph, as plain numbers.

Contract: the report travels inside the compiled graph (see `ranks.announce`), so it is published at the graph's first
run, also when the caches are warm and no pass has run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any

from farskip_compile._compat import trace_artifact
from farskip_compile.passes.schedule.search import Schedule
from farskip_compile.passes.schedule.timeline import ScheduledFlight, Timeline
from farskip_compile.records.registry import COMPILES
from farskip_compile.text_utils import amount

log = logging.getLogger("farskip_compile")


@dataclass(frozen=True)
class Predicted:
    """What the machine model says about one order of a graph."""

    seconds: float
    """Time of the whole graph."""
    compute_seconds: float
    communication_seconds: float
    exposed_seconds: float
    """Time in which compute stands still for a collective."""
    peak_bytes: int
    """Most memory alive at once."""
    in_flight_bytes: int
    """Most memory held by collectives in flight."""
    late_seconds: float = 0.0
    """Time after the end of the graph until what it leaves in flight has landed."""

    @classmethod
    def of(cls, timeline: Timeline) -> Predicted:
        """Return the figures of `timeline`."""
        seconds = timeline.makespan, timeline.compute, timeline.communication, timeline.exposed
        return cls(*seconds, timeline.peak_bytes, timeline.peak_in_flight_bytes, timeline.late)


@dataclass(frozen=True)
class ScheduleReport:
    """One compiled graph with collectives in it."""

    phase: str
    """`forward`, `backward` or `inference`."""
    orders: dict[str, list[str]] = field(default_factory=dict)
    """Process group -> its launches in order."""
    unscheduled: Predicted | None = None
    """The graph as it came, each wait right after its launch; before fusion, so its compute is estimated more roughly.
    Its peak is that of Inductor's kernels, if those are known: the limit on memory starts from it."""
    before: Predicted | None = None
    """The order that Inductor chose: of its kernels, or before fusion of the graph."""
    after: Predicted | None = None
    """The order that runs."""
    level: str = "graph"
    """`kernels` if the figures are of fused kernels, `graph` if they are of the graph before fusion."""
    waits_pinned: int = 0
    """Waits held after the products that hide their collectives."""
    waits_collapsed: int = 0
    """Superfluous waits removed."""
    pieces: int = 1
    """In how many pieces exchanges were cut."""
    exchanges_cut: int = 0
    """Pairs of dispatch and combine that are in pieces."""
    exchanges_whole: tuple[str, ...] = ()
    """Those that are not, and why."""
    pieces_same_bits: bool | None = None
    """Whether products in pieces give the same bits as whole ones, on the device that compiled; None: not known."""
    pieces_along: tuple[str, ...] = ()
    """What the rows of pieces are that were cut before differentiation: those of `experts` (gradients of weights are
    whole), of `tokens` or of parts of the `batch` (they are sums over pieces). Padded exchanges are cut after it, and
    gradients of weights are whole."""
    left_in_flight: int = 0
    """Of a layer that is compiled by itself: collectives that the next layer waits for."""
    leaves: str = ""
    """By which key the next layer finds that."""
    landed: tuple[str, ...] = ()
    """Waits that were to be left to the next layer and are not: the exchange was cut in other pieces than expected."""
    blocking: tuple[str, ...] = ()
    """Operators that communicate, and that can't be moved apart: `4 x symm_mem::one_shot_all_reduce`."""
    cuda_graphs: int = 0
    """Parts of the program that Inductor takes for CUDA graphs. It may still decline, and logs why."""
    outside_cuda_graphs: bool = False
    """Whether collectives are in none of them: one would have been in flight where a CUDA graph begins or ends."""
    profile: str = ""
    """Name of the hardware profile that the figures come from."""
    flights: tuple[ScheduledFlight, ...] = ()
    """Each collective in the order that runs: launch, wait and what is computed in between."""

    def ordered(self, schedule: Schedule, level: str = "graph") -> ScheduleReport:
        """Return the report after `schedule` has ordered the graph or its kernels; `level` as in the field."""
        return replace(
            self,
            before=Predicted.of(schedule.before),
            after=Predicted.of(schedule.after),
            flights=tuple(map(_rounded, schedule.flights)),
            level=level,
        )

    def to_json(self, *, short: bool = False) -> dict[str, Any]:
        """Plain data for `json.dumps`; `short` leaves the names of the fields of flights out."""
        data = asdict(self)
        return {**data, "flights": [list(astuple(flight)) for flight in self.flights]} if short else data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ScheduleReport:
        """Return the report that `to_json` was called on, of its `data` in either form; other keys are ignored."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        for name in ("unscheduled", "before", "after"):
            if known.get(name) is not None:
                known[name] = Predicted(**known[name])
        for name in ("exchanges_whole", "pieces_along", "landed", "blocking"):
            if name in known:
                known[name] = tuple(known[name])
        if "flights" in known:
            known["flights"] = tuple(_flight(one) for one in known["flights"])
        return cls(**known)

    def summary(self) -> str:
        """One line for the log."""
        launches = sum(map(len, self.orders.values()))
        text = (
            f"{self.phase} graph with {amount(launches, 'collective')} on {amount(len(self.orders), 'process group')}"
        )
        if self.pieces > 1:
            text += f", {amount(self.exchanges_cut, 'exchange')} in {self.pieces} pieces"
            text += f" by {' and '.join(self.pieces_along)}" if self.pieces_along else ""
            text += f" and {len(self.exchanges_whole)} whole" if self.exchanges_whole else ""
            text += {True: " (same bits)", False: " (other rounding)", None: ""}[self.pieces_same_bits]
        if self.left_in_flight or self.landed:
            text += f", {self.left_in_flight} left in flight"
            text += f" and {len(self.landed)} waited for that should be" if self.landed else ""
        if self.blocking:
            text += f", blocking and not to be moved: {', '.join(self.blocking)}"
        if self.cuda_graphs:
            text += f", {amount(self.cuda_graphs, 'CUDA graph')}"
            text += " without collectives" if self.outside_cuda_graphs else ""
        if self.before is None or self.after is None:
            return f"{text}, not scheduled"
        before, after = self.before, self.after
        exposed = (self.unscheduled or before).exposed_seconds
        held = min(before.peak_bytes, (self.unscheduled or before).peak_bytes)
        growth = after.peak_bytes / held - 1 if held else 0.0
        return (
            f"{text}: exposed communication {exposed * 1e3:.3g} -> {after.exposed_seconds * 1e3:.3g} of "
            f"{after.communication_seconds * 1e3:.3g} ms, peak memory {growth:+.1%}, "
            f"{after.in_flight_bytes / 1e6:.3g} MB in flight (estimates, {self.profile})"
        )


def _rounded(flight: ScheduledFlight) -> ScheduledFlight:
    """Estimates are not better than four digits, and the report is a text in the compiled graph."""
    rounded: dict[str, Any] = {
        name: float(f"{value:.4g}") for name, value in asdict(flight).items() if isinstance(value, float)
    }
    return replace(flight, **rounded)


def _flight(data: Mapping[str, Any] | Sequence[Any]) -> ScheduledFlight:
    """From either form of `to_json`."""
    known = (
        dict(data) if isinstance(data, Mapping) else dict(zip(ScheduledFlight.__dataclass_fields__, data, strict=True))
    )
    return ScheduledFlight(**{**known, "terms": tuple(known["terms"])})


def last_schedules() -> tuple[ScheduleReport, ...]:
    """Return the reports of this process, oldest first: the last 256 graphs with collectives that have run."""
    with COMPILES.lock:
        return tuple(COMPILES.schedules)


def late(leaves: str) -> float | None:
    """Return the seconds until the collectives under the key `leaves` have landed; None: no graph has left them.

    The last graph that has run and leaves them counts. Equal on all ranks: they have compared what was compiled.
    """
    with COMPILES.lock:
        return COMPILES.late_seconds.get(leaves)


def clear_schedules() -> None:
    """Forget all reports."""
    with COMPILES.lock:
        COMPILES.schedules.clear()


@contextmanager
def hear(taken: Callable[[ScheduleReport], None]) -> Iterator[None]:
    """Call `taken` with the report of each graph that runs in this thread within the block, even if it ran before."""
    outer, COMPILES.listening.taken = listener(), taken
    try:
        yield
    finally:
        COMPILES.listening.taken = outer


def listener() -> Callable[[ScheduleReport], None] | None:
    """Return the function that listens in this thread."""
    return getattr(COMPILES.listening, "taken", None)


def publish_schedule(report: ScheduleReport) -> None:
    """Keep `report`, log it, and write it to the structured trace."""
    with COMPILES.lock:
        COMPILES.schedules.append(report)
        if report.leaves and report.after is not None:
            COMPILES.late_seconds[report.leaves] = report.after.late_seconds
    log.info("%s", report.summary())
    trace_artifact("farskip_schedule", lambda: json.dumps(report.to_json(), indent=1))
