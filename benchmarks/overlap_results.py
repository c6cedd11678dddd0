"""What `overlap.py` says about its measurements: medians, the table of a phase, the verdict.

Contract: arithmetic and text; nothing is measured here. Times are seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.bandwidth import columns

PREFILL, TRAINING = "prefill", "training"
PLAIN, FULL, COMPUTE, COMMUNICATION = "plain", "full", "compute", "communication"
PAIRS = (("none", PLAIN), (FULL, "hand-written"))
WANTED = {PREFILL: 1.2, TRAINING: 1.15}
WANTED_AT = 0.5
TOLERANCE = 1e-4
MOST_OTHERS = 0.2
"""Cores that other processes may keep busy before the table says so."""


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


@dataclass(frozen=True)
class Phase:
    """What was measured of one phase."""

    name: str
    network: str
    rate: int | None
    timings: Mapping[str, Timing]
    exposed: Mapping[str, Mapping[str, float]]
    """By variant: seconds of `communication`, of it `exposed`, and of `compute`, means over ranks."""
    compile_seconds: Mapping[str, float]
    errors: Sequence[float]
    """Of `none` against plain, and of `full` against the hand-written form; the worst tensor of the worst rank."""
    worst: Sequence[str]
    """Names of those tensors."""
    tensors: int
    estimates: Mapping[str, Sequence[Mapping[str, Any]]]
    """By variant of ours: what the scheduler expected of each of its graphs (`ScheduleReport.to_json`)."""
    others: float
    """Cores that processes other than the ranks kept busy meanwhile."""
    raw: Sequence[Mapping[str, Sequence[float]]]
    """Seconds by rank, variant and repetition."""

    @property
    def bound(self) -> float:
        """The larger of compute and communication."""
        return max(self.timings[COMPUTE].median, self.timings[COMMUNICATION].median)

    @property
    def ratio(self) -> float:
        """Of communication to compute, as measured."""
        return self.timings[COMMUNICATION].median / self.timings[COMPUTE].median

    @property
    def agrees(self) -> bool:
        """Whether results are equal within the tolerance; not-a-number is not."""
        return all(error <= TOLERANCE for error in self.errors)

    def speed_up(self, variant: str) -> float:
        """Over plain Inductor."""
        return self.timings[PLAIN].median / self.timings[variant].median


def summarise(phase: str, network: str, rate: int | None, values: Sequence[Mapping[str, Any]]) -> Phase:
    """Put together what the ranks of `overlap_ranks.measure` returned."""
    names = list(values[0]["seconds"])
    worst = [max((value["checks"][i] for value in values), key=lambda c: _or_infinite(c["error"])) for i in range(2)]
    exposed = {
        variant: {key: statistics.fmean(value["exposed"][variant][key] for value in values) for key in figures}
        for variant, figures in values[0]["exposed"].items()
    }
    wall, _, machine = values[0]["busy"]
    others = max(0.0, machine - sum(value["busy"][1] for value in values)) / wall
    return Phase(
        name=phase,
        network=network,
        rate=rate,
        timings={name: Timing.of([value["seconds"][name] for value in values]) for name in names},
        exposed=exposed,
        compile_seconds={name: max(value["compile_seconds"][name] for value in values) for name in exposed},
        errors=[check["error"] for check in worst],
        worst=[check["worst"] for check in worst],
        tensors=worst[0]["tensors"],
        estimates=values[0]["estimates"],
        others=others,
        raw=[value["seconds"] for value in values],
    )


def _or_infinite(error: float) -> float:
    return float("inf") if error != error else error


def describe(phase: Phase, width: int) -> str:
    """Title, table and checks of one phase."""
    wide = width >= 112
    head = ["variant", "median", "spread", "speed-up", "in flight", "exposed", "hidden"]
    lines = [head + ["computing", "over bound", "compiled in"] * wide]
    for name, figures in phase.exposed.items():
        timing, communication, exposed = phase.timings[name], figures["communication"], figures["exposed"]
        line = [
            name,
            _ms(timing.median),
            _ms(timing.spread),
            f"{phase.speed_up(name):.2f} x",
            _ms(communication),
            _ms(exposed),
            f"{100 * (1 - exposed / communication):.0f} %",
        ]
        rest = [_ms(figures["compute"]), f"{timing.median / phase.bound:.2f} x", f"{phase.compile_seconds[name]:.0f} s"]
        lines.append(line + rest * wide)
    for name in (COMPUTE, COMMUNICATION):
        timing = phase.timings[name]
        lines.append([f"{name} alone", _ms(timing.median), _ms(timing.spread), *["-"] * (len(lines[0]) - 3)])
    best = phase.timings[PLAIN].median / phase.bound
    lines.append(["bound", _ms(phase.bound), "-", f"{best:.2f} x", *["-"] * (len(lines[0]) - 4)])
    equal = [
        f"  {one} = {other}: {'yes' if error <= TOLERANCE else 'NO'}, apart by {error:.1e} of the norm ({worst})"
        for (one, other), error, worst in zip(PAIRS, phase.errors, phase.worst, strict=True)
    ]
    expected = [f"  {name}, estimated: {_estimate(graphs)}" for name, graphs in phase.estimates.items()]
    title = f"{phase.name}: communication / compute = {phase.ratio:.2f}"
    quiet = f"  other processes kept {phase.others:.2f} cores busy"
    if phase.others > MOST_OTHERS:
        quiet += ": TOO MANY TO TRUST THESE FIGURES"
    return "\n".join([title, f"  {phase.network}", quiet, columns(lines, indent="  "), *expected, *equal])


def _estimate(graphs: Sequence[Mapping[str, Any]]) -> str:
    """Of all graphs of one variant together; the peak of the one that grows most."""
    scheduled = [graph for graph in graphs if graph["before"] and graph["after"]]
    if not scheduled:
        return "nothing was scheduled"
    before, after = (sum(graph[when]["exposed_seconds"] for graph in scheduled) for when in ("before", "after"))
    in_flight = sum(graph["after"]["communication_seconds"] for graph in scheduled)
    growth = max(graph["after"]["peak_bytes"] / graph["before"]["peak_bytes"] - 1 for graph in scheduled)
    return f"exposed {_ms(before)} -> {_ms(after)} of {_ms(in_flight)}, peak {100 * growth:+.1f} %"


def verdict(phases: Sequence[Phase], ratio: float, problem: str | None) -> tuple[bool, list[str]]:
    """Whether all is as it should be, and the last lines."""
    lines, passed = [], True
    for phase in phases:
        gain, wanted = phase.speed_up(FULL), WANTED[phase.name]
        judged = ratio == WANTED_AT
        enough = gain >= wanted or not judged
        passed &= enough and phase.agrees
        word = ("met" if enough else "missed") if judged else f"not judged at a ratio of {ratio:g}"
        same = "" if phase.agrees else "; RESULTS DIFFER"
        lines.append(
            f"{phase.name}: full is {gain:.2f} x as fast as plain Inductor (wanted {wanted:g} x: {word}){same}"
        )
    if problem is not None:
        return False, [*lines, f"NOT CHECKED: loopback, not a network ({problem})"]
    return passed, [*lines, "PASS" if passed else "FAIL"]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"
