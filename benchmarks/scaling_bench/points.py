"""Predictions of sweeps as plain data, each in its own process so that its memory can be measured.

Contract: nothing is measured but the time and memory that predicting takes.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace

from common import each_in_a_process

from scaling_bench.sweeps import SWEEPS


@dataclass(frozen=True)
class Found:
    """One prediction."""

    sweep: str
    label: str
    written: float
    """Seconds of the step as written."""
    communication: float
    exposed: float
    """Seconds under FarSkip in our order."""
    scheduled: float
    """Speed-ups over the step as written."""
    published: float
    farskip: float
    imbalance: float
    parameters: int
    nodes: int
    took: dict[str, float]
    peak_gib: float
    """Of the process that predicted."""

    @property
    def seconds(self) -> float:
        """What predicting took."""
        return self.took["model"] + self.took["graphs"] + self.took["orders"]


def run_sweeps(names: list[str], workers: int) -> list[Found]:
    """All points of the named sweeps, several at a time."""
    tasks = [(name, place) for name in SWEEPS if name in names for place in range(len(SWEEPS[name].points()))]
    return [one for found in each_in_a_process(_run, tasks, workers) for one in found]


def _run(task: tuple[str, int]) -> list[Found]:
    from farskip_compile.simulate import Scenario, predict_each

    name, place = task
    point = SWEEPS[name].points()[place]
    scenario = Scenario(**point.options)
    predictions = predict_each([replace(scenario, device=profile) for profile in point.profiles()])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    labels = [f"{one:g}" for one in point.faster] or [point.label]
    return [
        Found(
            sweep=name,
            label=label,
            written=one.written.seconds,
            communication=one.written.communication,
            exposed=one.farskip.exposed,
            scheduled=one.scheduled_speedup,
            published=one.published_speedup,
            farskip=one.speedup,
            imbalance=one.imbalance,
            parameters=one.parameters,
            nodes=one.nodes,
            took=dict(one.took),
            peak_gib=peak,
        )
        for label, one in zip(labels, predictions, strict=True)
    ]
