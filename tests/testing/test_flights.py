# SPDX-License-Identifier: Apache-2.0
"""Flights: what runs between a launch and its wait, by the definition, and what the wire exposes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from farskip_compile.passes.schedule.program import Program, Task, TaskRole
from farskip_compile.passes.schedule.search import list_schedule
from farskip_compile.passes.schedule.timeline import flights, simulate
from farskip_compile.records.announcement import Announcement
from farskip_compile.records.schedule import Predicted, ScheduleReport
from farskip_compile.testing.strategies import programs
from farskip_compile.testing.strategies.programs import consistent
from tests.economy import examples


@settings(max_examples=examples(200))
@given(program=programs().map(consistent))
def test_by_the_definition(program: Program):
    schedule = list_schedule(program)
    order = list(schedule.order)
    found = schedule.flights
    launches = [index for index in order if program.tasks[index].role is TaskRole.LAUNCH]
    assert [flight.launch for flight in found] == [program.tasks[index].name for index in launches]
    for flight, index in zip(found, launches, strict=True):
        waits = [
            p
            for p, i in enumerate(order)
            if program.tasks[i].role is TaskRole.WAIT and program.tasks[i].launch == index
        ]
        between = order[order.index(index) + 1 : min(waits, default=len(order))]
        compute = sum(program.tasks[i].seconds for i in between if program.tasks[i].role is TaskRole.COMPUTE)
        assert flight.compute == pytest.approx(compute, abs=1e-9)
        assert flight.seconds == program.tasks[index].seconds
        assert flight.channel == program.tasks[index].channel
        assert flight.start == schedule.after.start[index]
    if all(any(t.launch == index for t in program.tasks if t.role is TaskRole.WAIT) for index in launches):
        assert sum(flight.exposed for flight in found) == pytest.approx(schedule.after.exposed, abs=1e-9)


TASKS = (
    Task("send", seconds=2.0, role=TaskRole.LAUNCH, channel="ep", terms=("r1",)),
    Task("hide", seconds=0.5),
    Task("wait", role=TaskRole.WAIT, launch=0, needs=(1,)),
    Task("use", (2,), 3.0),
    Task("tail", seconds=4.0, role=TaskRole.LAUNCH, channel="dp", needs=(3,)),
)


def test_what_is_not_waited_for_flies_until_the_end():
    one, other = flights(Program(TASKS), range(5))
    assert (one.compute, one.exposed, one.start, one.terms) == (0.5, 1.5, 0.0, ("r1",))
    assert (other.compute, other.exposed, other.start, other.terms) == (0.0, 4.0, 5.0, ())


def test_a_graph_without_anything_to_send_has_none():
    assert list_schedule(Program((Task("a", seconds=1.0),))).flights == ()
    free = Program((Task("send", role=TaskRole.LAUNCH, channel="ep"), Task("wait", role=TaskRole.WAIT, launch=0)))
    assert len(list_schedule(free).flights) == 1


def test_they_survive_the_text_in_the_graph():
    program = Program(TASKS)
    schedule = list_schedule(program)
    announced = Announcement(ScheduleReport("forward").ordered(schedule), False, {"torch": "2"}, "identity")
    assert Announcement.from_text(announced.to_text()) == announced
    report = announced.report
    assert report.flights == schedule.flights
    assert report.after == Predicted.of(simulate(program, schedule.order))
    assert ScheduleReport.from_json(report.to_json()) == report
    # one for each collective of the model, in a text that each step reads
    assert len(str(report.to_json(short=True)["flights"][0])) < 80
