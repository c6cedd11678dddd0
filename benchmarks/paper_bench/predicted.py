# SPDX-License-Identifier: Apache-2.0
"""Predictions for published cells, as plain data.

In:    a line of `published`.
Out:   a `Row`: for each scenario the speed-ups of AMD's placement and of our order, and by which factor compute would
       have to be slower for the prediction to match what was published; where the step time as written is public, also
       the speed-ups predicted from it.
Never: fits anything: profiles are those that the package ships.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from common import each_in_a_process

from paper_bench.published import PUBLISHED, STEP_TIMES, Published

WITHIN = 0.05
"""A speed-up counts as predicted if it is off by no more than this."""


@dataclass(frozen=True)
class FromStepTime:
    """A prediction that starts from a published step time as written."""

    slower: float
    """How many times as long as by the profile compute took."""
    written: float
    """Seconds of the cell as written, with compute that much slower."""
    published: float
    farskip: float


@dataclass(frozen=True)
class Predicted:
    """One scenario."""

    prompt: int
    written: float
    """Seconds as written."""
    communication: float
    """Seconds of collectives as written."""
    scheduled: float
    """Speed-up of overlapping without FarSkip."""
    published: float
    """Speed-up by AMD's placement."""
    farskip: float
    """Speed-up by ours."""
    hidden: dict[str, float]
    """By AMD's placement: total, and by phase."""
    hidden_ours: float
    exposed: tuple[float, float]
    """Seconds, by AMD's placement and by ours."""
    compute: float
    """Seconds of compute by AMD's placement, interference included."""
    took: float
    from_step_time: FromStepTime | None = None

    def slower(self, speedup: float) -> float:
        """How many times as long compute would have to take for AMD's placement to yield `speedup`.

        Interference does not grow with it: it lasts as long as the collectives.
        """
        alone = self.written - self.communication
        added = self.compute - alone + self.exposed[0]
        return (self.communication - speedup * added) / (alone * (speedup - 1))


@dataclass(frozen=True)
class Compared:
    """A published speed-up and the predicted one."""

    published: float
    predicted: float

    @property
    def met(self) -> bool:
        """Whether the speed-up counts as predicted."""
        return abs(self.published - self.predicted) <= WITHIN


@dataclass(frozen=True)
class Row:
    """A published line and its predictions."""

    name: str
    predicted: tuple[Predicted, ...]

    @property
    def line(self) -> Published:
        """What was published."""
        return _line(self.name)

    def compared(self, from_step_times: bool = False) -> list[Compared]:
        """Each published speed-up with the predicted one: the ends of a range with our lowest and highest."""
        starts = [one.from_step_time for one in self.predicted if one.from_step_time is not None]
        found = sorted(one.published for one in (starts if from_step_times else self.predicted))
        ends = found if len(self.line.speedup) == 1 else [found[0], found[-1]]
        return [Compared(*pair) for pair in zip(self.line.speedup, ends, strict=True)]


def predict_all(names: list[str], layers: int | None, workers: int) -> list[Row]:
    known = [] if layers else [one for one in STEP_TIMES if one in [_line(name).step_time for name in names]]
    factors = each_in_a_process(_slower, [STEP_TIMES.index(one) for one in known], workers)
    slower = dict(zip(known, factors, strict=True))
    tasks = [
        (name, place, layers, slower.get(_line(name).step_time))
        for name in names
        for place in range(len(_line(name).scenarios))
    ]
    found = dict(zip(tasks, each_in_a_process(_predict, tasks, workers), strict=True))
    return [Row(name, tuple(found[task] for task in tasks if task[0] == name)) for name in names]


def _line(name: str) -> Published:
    return next(one for one in PUBLISHED if one.name == name)


def _slower(index: int) -> float:
    """How many times as long as by the profile compute takes in a published step."""
    from farskip_compile.measure.simulate import predict

    known = STEP_TIMES[index]
    return predict(dataclasses.replace(known.scenario(), measured=known.seconds)).slower


def _predict(task: tuple[str, int, int | None, float | None]) -> Predicted:
    from farskip_compile.measure.simulate import predict_each

    name, place, layers, slower = task
    scenario = _line(name).scenarios[place]()
    if layers is not None:
        scenario = dataclasses.replace(scenario, layers=min(layers, scenario.architecture.config().num_hidden_layers))
    found, *started = predict_each([scenario, *([dataclasses.replace(scenario, slower=slower)] if slower else [])])
    starts = (FromStepTime(one.slower, one.written.seconds, one.published_speedup, one.speedup) for one in started)
    phases = {phase.phase: found.published.hidden_in(phase.phase) for phase in found.published.phases}
    return Predicted(
        prompt=scenario.prompt,
        written=found.written.seconds,
        communication=found.written.communication,
        scheduled=found.scheduled_speedup,
        published=found.published_speedup,
        farskip=found.speedup,
        hidden={"total": found.published.hidden, **phases},
        hidden_ours=found.farskip.hidden,
        exposed=(found.published.exposed, found.farskip.exposed),
        compute=found.published.compute,
        took=found.took["model"] + found.took["graphs"] + found.took["orders"],
        from_step_time=next(starts, None),
    )
