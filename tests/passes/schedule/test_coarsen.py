# SPDX-License-Identifier: Apache-2.0
"""Smaller programs for the search: groups are short, keep every dependence, and cost what their tasks cost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings

from farskip_compile.passes.schedule.coarsen import LONGEST, coarsen
from farskip_compile.passes.schedule.memory import live_bytes
from farskip_compile.passes.schedule.program import Buffer, Program, Task, TaskRole, check_order
from farskip_compile.passes.schedule.timeline import run_timeline
from farskip_compile.testing.strategies import programs
from farskip_compile.testing.strategies.programs import consistent
from tests.economy import examples


def light(program: Program) -> Program:
    """The same with compute so short that it may be grouped."""
    tasks = [
        task
        if task.role is TaskRole.LAUNCH
        else Task(task.name, task.needs, task.seconds / 1e4, task.role, launch=task.launch)
        for task in program.tasks
    ]
    return Program(tuple(tasks), program.buffers)


def costs(program: Program, order: Sequence[int]) -> tuple[float, float]:
    run = run_timeline(program, order)
    return run.makespan, run.exposed


@settings(max_examples=examples(300))
@given(programs().map(consistent))
def test_an_order_of_groups_is_one_of_tasks(program: Program) -> None:
    for one in (program, light(program)):
        coarse = coarsen(one)
        assert sorted(i for members in coarse.members for i in members) == list(range(len(one.tasks)))
        order = range(len(coarse.program.tasks))
        check_order(coarse.program, order)
        whole = coarse.expand(order)
        check_order(one, whole)
        assert costs(coarse.program, order) == pytest.approx(costs(one, whole))
        launches = [task.seconds for task in one.tasks if task.role is TaskRole.LAUNCH]
        for members, task in zip(coarse.members, coarse.program.tasks, strict=True):
            if len(members) > 1:
                assert task.role is TaskRole.COMPUTE
                joined = sum(one.tasks[index].seconds for index in members[:-1])
                assert joined <= LONGEST * sum(launches) / max(len(launches), 1) + 1e-12


def test_what_joins_and_what_stays_alone() -> None:
    """What is short joins its only user; what is long, has two users, or leads to a launch does not."""
    tasks = (
        Task("long", (), 0.5),
        Task("twice"),
        Task("view of it", (0,)),
        Task("product", (1, 2), 0.5),
        Task("other product", (1,), 0.5),
        Task("scale", (3,), 0.015),
        Task("shift", (5,), 0.01),  # with the one before it, too long
        Task("sum", (4, 6), 0.1),
        Task("to send", (7,)),
        Task("send", (8,), 1.0, TaskRole.LAUNCH, channel="ep"),
        Task("wait", (9,), role=TaskRole.WAIT, launch=9),
    )
    groups = coarsen(Program(tasks)).members
    assert groups == ((0,), (1,), (2, 3), (4,), (5,), (6, 7), (8,), (9,), (10,))


def test_memory_is_not_held_for_a_group() -> None:
    tasks = (
        Task("make"),
        Task("fold", (0,)),
        Task("other", seconds=0.5),
        Task("use", (1, 2)),
        Task("send", (3,), 1.0, TaskRole.LAUNCH, channel="ep"),
        Task("wait", (4,), role=TaskRole.WAIT, launch=4),
    )
    buffers = (Buffer(1000, 0, (1,)), Buffer(1, 1, (3,)), Buffer(500, 2, (3,)))
    coarse = coarsen(Program(tasks, buffers))
    assert (1, 3) not in coarse.members
    order = coarse.expand(range(len(coarse.program.tasks)))
    assert max(live_bytes(Program(tasks, buffers), order)) == 1001
    light_fold = (Buffer(1, 0, (1,)), *buffers[1:])
    assert (1, 3) in [members[-2:] for members in coarsen(Program(tasks, light_fold)).members]
