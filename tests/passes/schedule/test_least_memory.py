# SPDX-License-Identifier: Apache-2.0
"""The order that holds little: it is valid, and holds less than one that nobody thought about."""

from __future__ import annotations

from hypothesis import given

from farskip_compile.passes.schedule.least_memory import CANDIDATES, least_memory
from farskip_compile.passes.schedule.memory import live_bytes
from farskip_compile.passes.schedule.program import Buffer, Program, Task, check_order
from farskip_compile.testing.strategies import programs
from farskip_compile.testing.strategies.programs import consistent


@given(programs().map(consistent))
def test_every_dependence_and_the_order_of_launches_are_kept(program: Program) -> None:
    order = least_memory(program)
    check_order(program, order)
    for channel in "abc":
        launches = [index for index in order if program.tasks[index].channel == channel]
        assert launches == sorted(launches)


def folded(pairs: int) -> Program:
    """Large values, all made before the first of them is folded into a small one."""
    make = [Task("make") for _ in range(pairs)]
    fold = [Task("fold", (index,)) for index in range(pairs)]
    buffers = [Buffer(100, index, (pairs + index,)) for index in range(pairs)]
    return Program((*make, *fold), (*buffers, *(Buffer(1, pairs + index, kept=True) for index in range(pairs))))


def test_one_after_another() -> None:
    program = folded(4)
    assert max(live_bytes(program, range(8))) == 401
    assert least_memory(program) == (0, 4, 1, 5, 2, 6, 3, 7)
    assert max(live_bytes(program, least_memory(program))) == 104


def test_only_the_first_that_are_ready_are_looked_at() -> None:
    """The last task frees an input. Until one of the others has run, it is too far away."""
    idle = tuple(Task("nothing") for _ in range(CANDIDATES))
    program = Program((*idle, Task("reads")), (Buffer(100, -1, (len(idle),)),))
    assert least_memory(program)[:3] == (0, len(idle), 1)
