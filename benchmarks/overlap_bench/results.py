"""What was measured of one cell, put together from what its ranks handed over.

Contract: arithmetic only; a `Result` is plain data, to JSON and back. Times are seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from overlap_bench.cells import Cell
from overlap_bench.names import COMMUNICATION, COMPUTE, FULL, OVERLAP, PASSES, PLAIN

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
    """By which part the estimated peak grows where it grows most, over the unscheduled graph's or, where that is less,
    Inductor's order: of graphs in the form of `ScheduleReport.to_json`."""
    peaks = [{when: graph[when]["peak_bytes"] for when in ("unscheduled", "before", "after")} for graph in scheduled]
    return max(peak["after"] / min(peak["unscheduled"], peak["before"]) - 1 for peak in peaks)


def slowest_median(ranks: Sequence[Sequence[float]]) -> float:
    """The median step, each as long as on its slowest rank."""
    return Timing.of(ranks).median


@dataclass(frozen=True)
class Result:
    """One cell."""

    cell: str
    """Its name."""
    about: str
    """Model and step in words."""
    network: str
    """In words; says so if it was none."""
    rate: int | None
    """Bits per second; None: it was no network."""
    cores: str
    """How the ranks shared the processor, in words."""
    when: str
    machine: str
    """On which it was measured: cells of one file may come from several runs."""
    timings: Mapping[str, Timing]
    exposed: Mapping[str, Mapping[str, Any]]
    """By variant: seconds of `communication`, of it `exposed`, of that `waiting` for a rank that launches later, and of
    `compute`; of `forward` and `backward`, if there is a backward pass, the first three. Means over ranks."""
    peak_bytes: Mapping[str, int]
    """By variant: most bytes that a step holds over what was there before; of the rank that holds most."""
    resident_bytes: int
    """Parameters, buffers and cache of rank 0, there before the step."""
    compile_seconds: Mapping[str, float]
    checks: Sequence[Mapping[str, Any]]
    """`one` variant against the `other` that it must equal: `error` of the `worst` of all `tensors`, worst rank."""
    code: Mapping[str, Mapping[str, int]]
    """By compiled variant: `CodeFacts` of the generated code."""
    estimates: Mapping[str, Sequence[Mapping[str, Any]]]
    """By variant of ours: what the scheduler expected of each of its graphs (`ScheduleReport.to_json`)."""
    model_bound: Mapping[str, float]
    """`Bound` of the kernels of `full`, in the scheduler's model of the machine."""
    profile: Mapping[str, Any]
    """The hardware profile that the variants were scheduled by."""
    missing: Mapping[str, str]
    """Variants that could not be had, and why."""
    others: float
    """Cores that processes other than the ranks kept busy meanwhile."""
    raw: Sequence[Mapping[str, Sequence[float]]]
    """Seconds by rank, variant and repetition."""

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
        """Seconds that compute takes longer under collectives in any schedule, by the model; not in `bound`."""
        return self.model_bound["slowing"]

    @property
    def bound(self) -> float:
        """The larger of compute and communication, and what no schedule can hide."""
        return max(self.timings[COMPUTE].median, self.timings[COMMUNICATION].median) + self.unhideable

    @property
    def ratio(self) -> float:
        """Of communication to compute, as measured."""
        return self.timings[COMMUNICATION].median / self.timings[COMPUTE].median

    @property
    def weight(self) -> float:
        """Communication as a part of the step of plain Inductor."""
        return self.timings[COMMUNICATION].median / self.timings[PLAIN].median

    def hidden(self, variant: str, part: str | None = None) -> float | None:
        """Part of the communication that is hidden; of `forward` or `backward` alone; None if there was none."""
        figures = self.exposed[variant] if part is None else self.exposed[variant].get(part)
        if not figures or not figures["communication"]:
            return None
        return 1 - figures["exposed"] / figures["communication"]

    def waiting(self, variant: str, part: str | None = None) -> float | None:
        """Part of the communication that is exposed while another rank has not launched it yet; None if the cell was
        measured before that was told."""
        figures = self.exposed[variant] if part is None else self.exposed[variant][part]
        return figures["waiting"] / figures["communication"] if "waiting" in figures else None

    def over_bound(self, variant: str) -> float:
        """Step time over the bound."""
        return self.timings[variant].median / self.bound

    def times_as_fast(self, variant: str, as_other: str) -> float:
        """Median over the repetitions, in each of which both took their turn: what slows a whole repetition is no
        difference between them."""
        one, other = (map(max, zip(*(rank[name] for rank in self.raw), strict=True)) for name in (variant, as_other))
        return statistics.median(theirs / ours for ours, theirs in zip(one, other, strict=True))

    def speed_up(self, variant: str) -> float:
        """Over plain Inductor."""
        return self.times_as_fast(variant, PLAIN)

    def acted(self, variant: str) -> bool | None:
        """Whether Inductor's own overlap moved anything: more heavy kernels stand between launches and waits than in
        plain's code. None: the variant is something else, or is missing."""
        if variant not in (OVERLAP, PASSES) or variant not in self.code:
            return None
        return self.code[variant]["heavy"] > self.code[PLAIN]["heavy"]

    @property
    def differs(self) -> list[Mapping[str, Any]]:
        """Checks that failed; not-a-number fails."""
        return [check for check in self.checks if not check["error"] <= TOLERANCE]

    def memory_growth(self, name: str = FULL) -> float | None:
        """By which part the estimated peak of a variant is above the unscheduled one; None if nothing is scheduled."""
        scheduled = [graph for graph in self.estimates.get(name, ()) if graph["before"] and graph["after"]]
        return peak_growth(scheduled) if scheduled else None

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the figures that follow from it for readers of the file."""
        figures = {
            "ratio": self.ratio,
            "bound": self.bound,
            "over_bound": {v: self.over_bound(v) for v in self.exposed},
        }
        return {**asdict(self), "figures": figures}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Result:
        """What `to_json` gave."""
        fields = {key: value for key, value in data.items() if key in Result.__dataclass_fields__}
        fields["timings"] = {name: Timing(**timing) for name, timing in data["timings"].items()}
        return Result(**fields)


def summarise(
    cell: Cell, handed: Mapping[str, Any], *, about: str, cores: str, when: str, machine: str, is_network: bool
) -> Result:
    """Put together what `measure_group` handed over."""
    ranks = handed["ranks"]
    wall, _, all_cores = ranks[0]["busy"]
    names = list(ranks[0]["exposed"])
    return Result(
        cell=str(cell),
        about=about,
        network=handed["network"]["text"],
        rate=handed["network"]["rate"] if is_network else None,
        cores=cores,
        when=when,
        machine=machine,
        timings={name: Timing.of([rank["seconds"][name] for rank in ranks]) for name in ranks[0]["seconds"]},
        exposed={name: _mean([rank["exposed"][name] for rank in ranks]) for name in names},
        peak_bytes={name: max(rank["peak_bytes"][name] for rank in ranks) for name in names},
        resident_bytes=handed["resident_bytes"],
        compile_seconds=handed["compile_seconds"],
        checks=[
            max((rank["checks"][i] for rank in ranks), key=lambda check: _or_infinite(check["error"]))
            for i in range(len(ranks[0]["checks"]))
        ],
        code=handed["code"],
        estimates=handed["estimates"],
        model_bound=handed["model_bound"],
        profile=handed["profile"],
        missing=handed["missing"],
        others=max(0.0, all_cores - sum(rank["busy"][1] for rank in ranks)) / wall,
        raw=[rank["seconds"] for rank in ranks],
    )


def _mean(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each figure, also of those in parts."""
    return {
        key: _mean([one[key] for one in figures])
        if isinstance(value, Mapping)
        else statistics.fmean(one[key] for one in figures)
        for key, value in figures[0].items()
    }


def _or_infinite(error: float) -> float:
    return float("inf") if error != error else error
