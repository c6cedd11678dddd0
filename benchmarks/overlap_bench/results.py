# SPDX-License-Identifier: Apache-2.0
"""The figures of one cell, put together from what its ranks handed over; and the file of all cells.

Contract: arithmetic only; a `Result` is plain data, to JSON and back. Times are seconds. The file is complete after
every cell; a cell that is measured again replaces its entry, so that an interrupted run can resume (`--resume`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import decode, load_records, write_records

from overlap_bench.cells import COMMUNICATION, COMPUTE, FULL, NONE, OVERLAP, PASSES, PLAIN, Cell

SCHEMA = 3
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Timing:
    """Seconds of one variant."""

    median: float
    spread: float
    """Interquartile range."""

    @staticmethod
    def of(ranks: Sequence[Sequence[float]]) -> Timing:
        """From each rank's repetitions: a step takes as long as on its slowest rank."""
        low, middle, high = statistics.quantiles(map(max, zip(*ranks, strict=True)), n=4, method="inclusive")
        return Timing(middle, high - low)


def peak_growth(scheduled: Iterable[Mapping[str, Any]]) -> float:
    """The largest relative growth of the estimated peak, over the unscheduled graph, if that is known, or where that
    holds less, Inductor's order; graphs as `ScheduleReport.to_json` writes them."""
    growth = []
    for graph in scheduled:
        before = [graph[when]["peak_bytes"] for when in ("unscheduled", "before") if graph[when]]
        growth.append(graph["after"]["peak_bytes"] / min(before) - 1)
    return max(growth)


@dataclass(frozen=True)
class Result:
    """One cell."""

    cell: str
    """Its name."""
    about: str
    """Model and step in words."""
    network: str
    """In words; says so if it was the loopback interface."""
    rate: int | None
    """Bits per second; None: it was not a network."""
    cores: str
    """How the ranks shared the processor, in words."""
    when: str
    machine: str
    """Where it was measured: cells of one file may come from several runs."""
    timings: Mapping[str, Timing]
    exposed: Mapping[str, Mapping[str, Any]]
    """By variant: seconds of `communication`, how much of it is `exposed`, how much of that is `waiting` for a rank to
    launch, and `compute`; the first three also for `forward` and `backward`, if any. Means over ranks."""
    peak_bytes: Mapping[str, int]
    """By variant: most bytes that a step holds over what was allocated before, on the rank that holds most."""
    resident_bytes: int
    """Parameters, buffers and cache of rank 0, allocated before the step."""
    compile_seconds: Mapping[str, float]
    checks: Sequence[Mapping[str, Any]]
    """`one` variant against the `other` that it must equal: `error` of the `worst` of all `tensors`, worst rank."""
    code: Mapping[str, Mapping[str, int]]
    """By compiled variant: `CodeFacts` of the generated code."""
    estimates: Mapping[str, Sequence[Mapping[str, Any]]]
    """By our variants: what the scheduler expected of each graph (`ScheduleReport.to_json`)."""
    model_bound: Mapping[str, float]
    """`Bound` of the kernels of `full`, in the scheduler's model of the machine."""
    profile: Mapping[str, Any]
    """The hardware profile that the variants were scheduled by."""
    shares: Mapping[str, float]
    """Of what layers with experts compute: attention, shared and routed experts, measured."""
    missing: Mapping[str, str]
    """Variants that could not be made, and why."""
    others: float
    """Cores that processes other than the ranks kept busy meanwhile."""
    raw: Sequence[Mapping[str, Sequence[float]]]
    """Seconds by rank, variant and repetition."""
    largest_exchange: int = 0
    """Bytes that a rank sends in it; 0: of an older cell, not known."""
    least_makespans: Mapping[str, float] = field(default_factory=dict)
    """By our variants: seconds that no order of its own kernels takes less than, in the model, whatever it holds."""

    @property
    def at(self) -> Cell:
        """The cell itself."""
        return Cell.parse(self.cell)

    @property
    def unhideable(self) -> float:
        """Seconds that no schedule can hide, by the model."""
        return self.model_bound["unhideable"]

    @property
    def slowing(self) -> float:
        """Seconds by which collectives slow compute in any schedule, by the model; not in `bound`."""
        return self.model_bound["slowing"]

    @property
    def bound(self) -> float:
        """The larger of compute and communication, plus what no schedule can hide."""
        return self.floor + self.unhideable

    @property
    def floor(self) -> float:
        """The larger of compute and communication: no step takes less, if its exchanges take as long as alone."""
        return max(self.timings[COMPUTE].median, self.timings[COMMUNICATION].median)

    @property
    def ratio(self) -> float:
        """Communication over compute, as measured."""
        return self.timings[COMMUNICATION].median / self.timings[COMPUTE].median

    @property
    def weight(self) -> float:
        """Communication over the step of plain Inductor."""
        return self.timings[COMMUNICATION].median / self.timings[PLAIN].median

    def hidden(self, variant: str, part: str | None = None) -> float | None:
        """Fraction of the communication that is hidden, in all or in `forward` or `backward`; None: there was none."""
        figures = self.exposed[variant] if part is None else self.exposed[variant].get(part)
        if not figures or not figures["communication"]:
            return None
        return 1 - figures["exposed"] / figures["communication"]

    def waiting(self, variant: str, part: str | None = None) -> float | None:
        """Fraction of the communication that is exposed while another rank has not launched it yet; None: an older cell
        without that figure."""
        figures = self.exposed[variant] if part is None else self.exposed[variant][part]
        return figures["waiting"] / figures["communication"] if "waiting" in figures else None

    def over_bound(self, variant: str) -> float:
        """Step time over the bound."""
        return self.timings[variant].median / self.bound

    def times_as_fast(self, variant: str, as_other: str) -> float:
        """Median of the ratios within each repetition: what slows a whole repetition slows both."""
        one, other = (map(max, zip(*(rank[name] for rank in self.raw), strict=True)) for name in (variant, as_other))
        return statistics.median(theirs / ours for ours, theirs in zip(one, other, strict=True))

    def speed_up(self, variant: str) -> float:
        """Over plain Inductor."""
        return self.times_as_fast(variant, PLAIN)

    def acted(self, variant: str) -> bool | None:
        """Whether Inductor's own overlap moved anything: more heavy kernels between launches and waits than in plain's
        code. None: another variant, or a missing one."""
        if variant not in (OVERLAP, PASSES) or variant not in self.code:
            return None
        return self.code[variant]["heavy"] > self.code[PLAIN]["heavy"]

    @property
    def differs(self) -> list[Mapping[str, Any]]:
        """Checks that failed; not-a-number fails."""
        return [check for check in self.checks if not check["error"] <= TOLERANCE]

    def memory_growth(self, name: str = FULL) -> float | None:
        """Relative growth of a variant's estimated peak over the unscheduled one; None: nothing is scheduled."""
        scheduled = [graph for graph in self.estimates.get(name, ()) if graph["before"] and graph["after"]]
        return peak_growth(scheduled) if scheduled else None

    def expected_speed_up(self, name: str) -> float | None:
        """A variant's order over that of plain Inductor, both in the model, in which a part of a message takes its part
        of the whole one's time; None: nothing is scheduled."""
        plain, ours = self.estimates.get(NONE, ()), self.estimates.get(name, ())
        if not plain or not ours or not all(graph["after"] and graph["unscheduled"] for graph in (*plain, *ours)):
            return None
        return float(
            sum(graph["unscheduled"]["seconds"] for graph in plain) / sum(graph["after"]["seconds"] for graph in ours)
        )

    def over_least(self, name: str) -> float | None:
        """The makespan of a variant's order over the least one of its own kernels, both in the model; None: nothing is
        scheduled, or an older cell."""
        seconds = [graph["after"]["seconds"] for graph in self.estimates.get(name, ()) if graph["after"]]
        least = self.least_makespans.get(name)
        return sum(seconds) / least if seconds and least else None

    def to_json(self) -> dict[str, Any]:
        """Plain data, with derived figures for readers of the file."""
        over = {variant: self.over_bound(variant) for variant in self.exposed}
        figures = {"ratio": self.ratio, "bound": self.bound, "over_bound": over}
        return {**asdict(self), "figures": figures}


@dataclass
class Store:
    """All results of a file, and the facts about the last run that wrote it."""

    path: Path | None
    """None: nothing is kept."""
    facts: dict[str, Any] = field(default_factory=dict)
    """`versions`, `command`, `method`."""
    results: dict[str, Result] = field(default_factory=dict)
    """By name of the cell."""

    @staticmethod
    def load(path: Path) -> Store:
        """What is in the file; raises as `load_records`."""

        def build(data: Mapping[str, Any]) -> Store:
            return Store(path, data["facts"], {one.cell: one for one in decode(list[Result], data["cells"])})

        return load_records(path, SCHEMA, build)

    def add(self, result: Result) -> None:
        """Keep a finished cell, and write the file."""
        self.results[result.cell] = result
        if self.path is not None:
            write_records(self.path, SCHEMA, self.facts, cells=[one.to_json() for one in self.ordered()])

    def ordered(self) -> list[Result]:
        """By hosts, phase, routing, model and ratio."""
        return sorted(self.results.values(), key=lambda result: result.at.place)


AS_HANDED = (
    *("resident_bytes", "compile_seconds", "code", "estimates"),
    *("model_bound", "profile", "missing", "shares", "largest_exchange", "least_makespans"),
)


def summarise(cell: Cell, handed: Mapping[str, Any], *, is_network: bool, **words: str) -> Result:
    """Put together what the ranks of `measure_group` handed over; `words`: `about`, `cores`, `when`, `machine`."""
    ranks = handed["ranks"]
    wall, _, all_cores = ranks[0]["busy"]
    names = list(ranks[0]["exposed"])
    return Result(
        cell=str(cell),
        **words,
        **{name: handed[name] for name in AS_HANDED},
        network=handed["network"]["text"],
        rate=handed["network"]["rate"] if is_network else None,
        timings={name: Timing.of([rank["seconds"][name] for rank in ranks]) for name in ranks[0]["seconds"]},
        exposed={name: _mean([rank["exposed"][name] for rank in ranks]) for name in names},
        peak_bytes={name: max(rank["peak_bytes"][name] for rank in ranks) for name in names},
        checks=[
            max(check, key=lambda one: math.inf if math.isnan(one["error"]) else one["error"])
            for check in zip(*(rank["checks"] for rank in ranks), strict=True)
        ],
        others=max(0.0, all_cores - sum(rank["busy"][1] for rank in ranks)) / wall,
        raw=[rank["seconds"] for rank in ranks],
    )


def _mean(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of each figure, nested ones included."""
    return {
        key: _mean([one[key] for one in figures])
        if isinstance(value, Mapping)
        else statistics.fmean(one[key] for one in figures)
        for key, value in figures[0].items()
    }
