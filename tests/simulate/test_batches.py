# SPDX-License-Identifier: Apache-2.0
"""Two micro-batches from the program of one: small ones by hand, and any program at all."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.measure.simulate.batches import in_order, in_turn, in_two_batches, one_after_another, stretches
from farskip_compile.passes.schedule.program import Buffer, Program, Task, TaskRole, check_order, needs_of
from farskip_compile.passes.schedule.search import MemoryLimits, list_schedule
from farskip_compile.passes.schedule.timeline import simulate
from farskip_compile.testing.strategies.programs import programs

FREE = MemoryLimits(memory_increase=1e9)


def layers(count: int, *, counts: bool = False) -> Program:
    """Of each layer: attention, dispatch, experts, combine, a second each; `counts`: how many rows, before them."""
    tasks: list[Task] = []

    def add(name: str, seconds: float, role: TaskRole = TaskRole.COMPUTE) -> None:
        needs = (len(tasks) - 1,) if tasks else ()
        launch = len(tasks) - 1 if role is TaskRole.WAIT else -1
        tasks.append(Task(name, needs, seconds, role, channel="ep" * (role is TaskRole.LAUNCH), launch=launch))

    for _ in range(count):
        add("attention", 1.0)
        if counts:
            add("counts", 0.01, TaskRole.LAUNCH)
            add("wait", 0.0, TaskRole.WAIT)
            add("permute", 0.01)
        add("dispatch", 1.0, TaskRole.LAUNCH)
        add("wait", 0.0, TaskRole.WAIT)
        add("experts", 1.0)
        add("combine", 1.0, TaskRole.LAUNCH)
        add("wait", 0.0, TaskRole.WAIT)
    return Program(tuple(tasks))


def written(program: Program) -> tuple[int, ...]:
    return tuple(range(len(program.tasks)))


def launches(program: Program) -> list[str]:
    return [task.name for task in program.tasks if task.role is TaskRole.LAUNCH]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_alternating_is_what_hides(count: int) -> None:
    """Four seconds for a layer of each half, of which two are compute. Only the last combine of the second half finds
    nothing beside it. One half after the other, not even the best order hides more than one launch."""
    half = layers(count)
    assert simulate(half, written(half)).makespan == 4 * count
    found = in_two_batches(half, [written(half)], (), {})
    line = simulate(found, written(found))
    assert (line.makespan, line.compute, line.communication, line.exposed) == (4 * count + 1, 4 * count, 4 * count, 1)
    assert list_schedule(found, FREE).after.makespan == 4 * count + 1
    apart = one_after_another(half, (), {})
    assert list_schedule(apart, FREE).after.makespan == 8 * count - 1


def test_launches_alternate() -> None:
    found = in_two_batches(layers(2), [written(layers(2))], (), {})
    assert launches(found) == ["dispatch", "dispatch'", "combine", "combine'"] * 2


def test_counts_go_with_their_rows() -> None:
    """Two of each in turn: between counts and rows there is nothing to put the other half beside."""
    half = layers(2, counts=True)
    found = in_two_batches(half, [written(half)], (), {})
    assert launches(found) == ["counts", "dispatch", "counts'", "dispatch'", "combine", "combine'"] * 2
    assert [len(part) for part in stretches(half, written(half), 0.1)] == [5, 3, 6, 3, 1]
    assert [len(part) for part in stretches(half, written(half), 0.0)] == [2, 3, 3, 3, 3, 3, 1]


def test_the_first_half_may_be_ahead() -> None:
    assert in_turn([[1], [2, 3], [4]], [[5], [6, 7], [8]], 0) == [1, 5, 2, 3, 6, 7, 4, 8]
    assert in_turn([[1], [2, 3], [4]], [[5], [6, 7], [8]], 2) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert in_turn([[1], [2, 3], [4]], [[5], [6, 7], [8]], 1) == [1, 2, 3, 5, 4, 6, 7, 8]


def test_the_best_way_is_kept() -> None:
    """A long combine that only two attentions hide: the first half is one stretch ahead."""
    half = layers(3)
    tasks = [replace(task, seconds=0.1) if task.name in ("experts", "dispatch") else task for task in half.tasks]
    half = replace(half, tasks=tuple(tasks))
    found = in_two_batches(half, [written(half)], (), {})
    parts = stretches(half, written(half), 0.0)
    others = [[index + len(half.tasks) for index in part] for part in parts]
    apart = one_after_another(half, (), {})
    spans = [simulate(apart, in_turn(parts, others, ahead)).makespan for ahead in (0, 1, 2)]
    assert simulate(found, written(found)).makespan <= min(spans)
    assert len(set(spans)) > 1


GRADIENT = Program(
    (Task("before", (), 1.0), Task("mm", (0,), 2.0), Task("view", (1,)), Task("after", (1,), 1.0)),
    (
        Buffer(100, -1, (0, 1), kept=True),  # a parameter
        Buffer(10, -1, (1,)),  # what forward saved
        Buffer(7, 0, (1, 3)),
        Buffer(100, 1, (2,), kept=True),  # its gradient
    ),
)


def test_gradients_are_summed_and_parameters_shared() -> None:
    found = in_two_batches(GRADIENT, [written(GRADIENT)], (0,), {3: 0.5})
    (place,) = [index for index, task in enumerate(found.tasks) if task.name == "mm_sum"]
    summed = found.tasks[place]
    assert (summed.seconds, summed.role) == (0.5, TaskRole.COMPUTE)
    assert {found.tasks[need].name for need in summed.needs} == {"mm", "view", "mm'", "view'"}
    assert simulate(found, written(found)).compute == 2 * 4.0 + 0.5
    sizes = sorted((one.size, one.maker >= 0, one.kept) for one in found.buffers)
    assert sizes == [
        (7, True, False), (7, True, False), (10, False, False), (10, False, False),
        (100, False, True), (100, True, False), (100, True, True),
    ]  # fmt: skip
    (second,) = [one for one in found.buffers if one.size == 100 and one.maker >= 0 and not one.kept]
    assert max(second.users) == place, "freed by the sum"
    assert simulate(found, written(found)).peak_bytes == 100 + 10 + 7 + 2 * 100


@given(programs(most=15), st.data())
def test_of_any_program(half: Program, data: st.DataObject) -> None:
    """Both halves are there whole, each with its needs, and launches of a half keep their order on each channel."""
    inputs = [place for place, one in enumerate(half.buffers) if one.maker < 0]
    kept = [place for place, one in enumerate(half.buffers) if one.maker >= 0 and one.kept]
    shared = data.draw(st.sets(st.sampled_from(inputs))) if inputs else set()
    sums = dict.fromkeys(data.draw(st.sets(st.sampled_from(kept))) if kept else (), 0.25)
    found = in_two_batches(half, [written(half)], shared, sums)
    check_order(found, written(found))
    apart, names = one_after_another(half, shared, sums), [task.name for task in half.tasks]
    assert [task.name for task in apart.tasks[: 2 * len(names)]] == names + [f"{name}'" for name in names]
    assert len(apart.tasks) == 2 * len(names) + len(sums)
    assert sorted(task.name for task in found.tasks) == sorted(task.name for task in apart.tasks)
    for mark in ("", "'"):
        own = {task.name: index for index, task in enumerate(found.tasks)}
        for index, needs in enumerate(needs_of(half)):
            assert all(own[names[need] + mark] < own[names[index] + mark] for need in needs)
            mine = found.tasks[own[names[index] + mark]]
            assert [found.tasks[need].name for need in sorted(mine.needs)] == [
                names[need] + mark for need in sorted(half.tasks[index].needs, key=lambda one: own[names[one] + mark])
            ]
    assert len(found.buffers) == 2 * len(half.buffers) - len(shared)


@given(programs(most=12))
def test_tasks_in_another_order(program: Program) -> None:
    """A program in an order costs what the order costs."""
    order = list_schedule(program, FREE).order
    moved = in_order(program, order)
    before, after = simulate(program, order), simulate(moved, written(moved))
    assert (after.makespan, after.compute, after.exposed) == (before.makespan, before.compute, before.exposed)
    plain = all(not (one.parts or one.over) for one in program.buffers)
    assert not plain or after.peak_bytes == before.peak_bytes
    assert [one.name for one in moved.tasks] == [program.tasks[index].name for index in order]


def test_a_program_without_launches() -> None:
    half = Program(tuple(Task(f"work{index}", (), 1.0) for index in range(3)))
    found = in_two_batches(half, [written(half)], (), {})
    assert list(itertools.chain(task.name for task in found.tasks)) == [
        "work0", "work1", "work2", "work0'", "work1'", "work2'",
    ]  # fmt: skip
