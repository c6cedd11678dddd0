# SPDX-License-Identifier: Apache-2.0
"""The batch in two parts through the whole stack: against sums done by hand, and against the whole batch."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from farskip_compile.costs import collective_seconds, load_profile
from farskip_compile.measure.simulate import Prediction, predict_each
from farskip_compile.measure.simulate.batches import in_order
from farskip_compile.measure.simulate.predict import LIMITS
from farskip_compile.measure.simulate.results import ORDERS, StepResult, exposed_rows, prediction_json
from farskip_compile.passes.schedule.program import TaskRole, check_order
from farskip_compile.passes.schedule.search import list_schedule
from farskip_compile.passes.schedule.timeline import simulate
from tests.simulate.tiny import predicted, scenario

pytest.importorskip("transformers")

pytestmark = pytest.mark.xdist_group("predictions")  # one worker, so that each model is predicted once

ROWS = ("overlapped, 2 batches", "FarSkip, 2 batches")
ACROSS: dict[str, Any] = {"device": "h100", "ep": 16, "tp": 1, "prompt": 2048, "batch": 32, "micro_batches": 2}
"""Two nodes, two sequences on each rank: much communication."""
CASES: list[dict[str, Any]] = [
    ACROSS,
    {},
    {"tp": 2, "exchange": "all-gather", "phase": "decode", "prompt": 4096, "batch": 32},
    {"tp": 1, "phase": "train", "prompt": 64},
]
TRAINED: tuple[dict[str, Any], ...] = ({}, {"slower": 3.0})


def in_two(**options: Any) -> tuple[Prediction, StepResult, StepResult]:
    """A prediction, and its rows of two micro-batches."""
    if options.get("phase") == "train":
        found = _trained()[TRAINED.index({"slower": options["slower"]} if "slower" in options else {})]
    else:
        found = predicted(**{"micro_batches": 2, **options})
    assert tuple(found.also) == ROWS
    return found, *(found.also[row] for row in ROWS)


@functools.cache
def _trained() -> list[Prediction]:
    """From one capture."""
    return predict_each([scenario(tp=1, phase="train", prompt=64, micro_batches=2, **one) for one in TRAINED])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kind_of_exchange(case: dict[str, Any]) -> None:
    """All-to-all, all-reduce, all-gather; prefill, decode, training."""
    found, *rows = in_two(**case)
    for step, whole in zip(rows, (found.scheduled, found.farskip), strict=True):
        assert [phase.phase for phase in step.phases] == [phase.phase for phase in whole.phases]
        for phase, one in zip(step.phases, whole.phases, strict=True):
            check_order(phase.program, phase.order)
            assert simulate(phase.program, phase.order) == phase.timeline
            both, once = (
                [task for task in each.program.tasks if task.role is TaskRole.LAUNCH] for each in (phase, one)
            )
            assert len(both) == 2 * len(once), "each half has all launches"
            kinds = exposed_rows(phase)
        assert sum(row.count for row in kinds) == len(both)
        assert len({(row.operator, row.terms) for row in exposed_rows(one)}) == len(kinds), "one kind of both halves"
        own = sum(
            task.seconds for phase in step.phases for task in phase.program.tasks if task.role is not TaskRole.LAUNCH
        )
        once = sum(
            task.seconds for phase in whole.phases for task in phase.program.tasks if task.role is not TaskRole.LAUNCH
        )
        assert own >= once, "smaller products are never cheaper"
        assert step.communication >= whole.communication
        assert step.hidden >= whole.hidden - 1e-9


def test_communication_by_hand() -> None:
    """Each half exchanges its rows, and how many they are: 3 layers, 2048 tokens that choose 4 experts."""
    profile = load_profile("h100")
    rows = collective_seconds("all_to_all", 2048 * 4 * 512 * 2, 16, profile)
    counts = collective_seconds("all_to_all", 32 * 8, 16, profile)
    for step in in_two(**ACROSS)[1:]:
        assert step.communication == pytest.approx(2 * 3 * (2 * rows + counts))


def test_they_hide_each_other() -> None:
    """Without FarSkip one part computes while the other one's tokens travel, which no order of one batch can do."""
    found, overlapped, rewired = in_two(**ACROSS)
    assert found.scheduled.hidden < 0.3
    assert overlapped.hidden > found.scheduled.hidden + 0.3
    assert overlapped.seconds < found.scheduled.seconds
    assert rewired.seconds <= overlapped.seconds * 1.02


def test_alternating_is_what_hides() -> None:
    """The same tasks with all launches of one half before those of the other, in the best order found."""
    _, overlapped, _ = in_two(**ACROSS)
    (phase,) = overlapped.phases
    order = sorted(range(len(phase.order)), key=lambda index: phase.program.tasks[index].name.endswith("'"))
    apart = list_schedule(in_order(phase.program, order), LIMITS).after
    assert apart.communication == pytest.approx(overlapped.communication)
    assert overlapped.seconds < 0.95 * apart.makespan
    assert overlapped.exposed < 0.7 * apart.exposed


def test_parameters_are_there_once_and_caches_are_halves() -> None:
    """In decode memory is parameters and caches, so two halves take what the whole takes."""
    found, overlapped, _ = in_two(**CASES[2])
    parameters = 2 * found.parameters
    assert found.written.peak_bytes > 1.2 * parameters, "caches count"
    assert overlapped.peak_bytes == pytest.approx(found.written.peak_bytes, rel=0.02)


def test_gradients_are_added_up() -> None:
    found, overlapped, _ = in_two(tp=1, phase="train", prompt=64)
    forward, backward = overlapped.phases
    assert not [task for task in forward.program.tasks if task.name.endswith("_sum")]
    sums = [task for task in backward.program.tasks if task.name.endswith("_sum")]
    profile = load_profile("mi300x")
    moved = 3 * 2 * found.parameters / (profile.memory_bandwidth * profile.efficiency.memory)
    assert sum(task.seconds for task in sums) == pytest.approx(moved + len(sums) * profile.launch_seconds, rel=0.1)
    assert overlapped.peak_bytes < found.scheduled.peak_bytes * 1.25, "parameters that backward reads are there once"


def test_slower_compute_slows_sums_too() -> None:
    _, plain, _ = in_two(tp=1, phase="train", prompt=64)
    _, slower, _ = in_two(tp=1, phase="train", prompt=64, slower=3.0)
    times = [
        sum(task.seconds for phase in step.phases for task in phase.program.tasks if task.role is not TaskRole.LAUNCH)
        for step in (plain, slower)
    ]
    assert times[1] == pytest.approx(3 * times[0])


def test_beside_pieces() -> None:
    """Each in rows of its own, equal to what is predicted without the other; the whole batch stays as it is."""
    options = {"tp": 1, "layers": 2, "pieces": 2, "micro_batches": 2, "also": ("lag2",)}
    found = predicted(**options)
    assert list(found.also) == ["overlapped, 2 pieces", "FarSkip, 2 pieces", *ROWS, "lag2"]
    alone = predicted(tp=1, layers=2, micro_batches=2)
    assert [found.also[row] for row in ROWS] == [alone.also[row] for row in ROWS]
    assert found.written == alone.written
    text = json.loads(json.dumps(prediction_json(found)))
    assert text["scenario"]["micro_batches"] == 2
    assert text["orders"].keys() == {*ORDERS, *found.also}
    assert text["speedup"][ROWS[0]] == pytest.approx(found.written.seconds / found.also[ROWS[0]].seconds)
