# SPDX-License-Identifier: Apache-2.0
"""The machine model by which orders are compared, and the programs that it takes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from farskip_compile.passes.schedule.program import Program, Task, TaskRole
from farskip_compile.passes.schedule.timeline import flights, simulate
from farskip_compile.testing.strategies import programs


@settings(max_examples=200, deadline=None)
@given(programs())
def test_the_machine_model_adds_up(program: Program) -> None:
    timeline = simulate(program, range(len(program.tasks)))
    assert timeline.makespan == pytest.approx(timeline.compute + timeline.exposed)
    assert timeline.exposed <= timeline.communication + 1e-9
    assert timeline.makespan >= max(timeline.compute, 0.0)


def test_compute_is_slower_while_something_is_in_flight() -> None:
    """4 s of work, of which the first 2.5 s on the clock do only 2 s of it; a second network slows it further."""
    tasks = (
        Task("launch", (), 2.5, TaskRole.LAUNCH, "ep", interference=0.25),
        Task("work", (), 4.0),
        Task("wait", (), 0.0, TaskRole.WAIT, launch=0),
    )
    timeline = simulate(Program(tasks), range(3))
    assert timeline.makespan == timeline.compute == 4.5
    assert timeline.exposed == 0.0
    within = Program((tasks[0], Task("work", (), 1.0)))  # done long before the collective is
    assert simulate(within, range(2)).compute == 1.25
    other = Task(
        "other", (), 1.0, TaskRole.LAUNCH, "tp", interference=0.75
    )  # 1 s at half the speed, then 1.5 s at four fifths
    both = Program((tasks[0], other, Task("work", (), 4.0)))
    assert simulate(both, range(3)).compute == pytest.approx(1.0 + 1.5 + (4.0 - 0.5 - 1.2))


@pytest.mark.parametrize(("link", "seconds"), [("", 2.0), ("wire", 3.0)])
def test_groups_share_a_link(link: str, seconds: float) -> None:
    tasks = (
        Task("dispatch", (), 1.0, TaskRole.LAUNCH, "ep", link=link),
        Task("all-reduce", (), 2.0, TaskRole.LAUNCH, "tp", link=link),
    )
    assert simulate(Program(tasks), range(2)).makespan == seconds


def test_what_the_next_graph_waits_for_is_late_and_not_exposed() -> None:
    tasks = (
        Task("combine", (), 2.0, TaskRole.LAUNCH, "ep", leaves=True),
        Task("dispatch", (), 1.0, TaskRole.LAUNCH, "ep"),
        Task("work", (), 0.5),
        Task("wait", (), 0.0, TaskRole.WAIT, launch=1),
        Task("combine of the next", (3,), 4.0, TaskRole.LAUNCH, "ep", leaves=True),
    )
    program = Program(tasks)
    timeline = simulate(program, range(5))
    assert (timeline.makespan, timeline.exposed, timeline.late) == (3.0, 2.5, 4.0)
    assert [flight.exposed for flight in flights(program, range(5))] == [0.0, 2.5, 0.0]
    assert simulate(Program(tasks[:3]), range(3)).exposed == 2.5  # nobody waits for the dispatch, here or later


def test_a_program_must_be_in_order() -> None:
    with pytest.raises(ValueError, match="needs a task that is not before it"):
        Program((Task("a", (0,)),))
    with pytest.raises(ValueError, match="names no launch before it"):
        Program((Task("a"), Task("wait", (), 0.0, TaskRole.WAIT, launch=0)))
    with pytest.raises(ValueError, match="comes before"):
        simulate(Program((Task("a"), Task("b", (0,)))), (1, 0))
