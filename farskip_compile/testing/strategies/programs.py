# SPDX-License-Identifier: Apache-2.0
"""Strategies: random programs for a scheduler.

Times are multiples of a tenth of a second: ties are as important as differences.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from farskip_compile.passes.schedule.program import Buffer, Program, Task, TaskRole

SECONDS = st.integers(0, 20).map(lambda tenths: tenths / 10)


@st.composite
def programs(draw: st.DrawFn, most: int = 40) -> Program:
    """At most `most` tasks: compute, launches on up to three channels, zero to two waits for each launch; and
    memory."""
    count = draw(st.integers(1, most))
    tasks: list[Task] = []
    launches: list[int] = []
    for index in range(count):
        needs = tuple(sorted(draw(st.sets(st.integers(0, index - 1), max_size=3)))) if index else ()
        roles = [TaskRole.COMPUTE, TaskRole.COMPUTE, TaskRole.LAUNCH] + ([TaskRole.WAIT] if launches else [])
        role = draw(st.sampled_from(roles))
        name = f"{role}{index}"
        if role is TaskRole.LAUNCH:
            launches.append(index)
            channel, interference = draw(st.sampled_from("abc")), draw(st.sampled_from([0.0, 0.0, 0.25]))
            link = draw(st.sampled_from(["", "wire"]))
            tasks.append(Task(name, needs, draw(SECONDS), role, channel=channel, link=link, interference=interference))
        elif role is TaskRole.WAIT:
            tasks.append(Task(name, needs, 0.0, role, launch=draw(st.sampled_from(launches))))
        else:
            tasks.append(Task(name, needs, draw(SECONDS), joins=draw(st.booleans())))
    return Program(tuple(tasks), _written_over(draw, draw(st.lists(buffers(count), max_size=count))))


@st.composite
def buffers(draw: st.DrawFn, count: int) -> Buffer:
    """Memory made by one of `count` tasks, or an input, and used by later ones."""
    maker = draw(st.integers(-1, count - 1))
    later = st.integers(maker + 1, count - 1)
    users = sorted(draw(st.sets(later, max_size=3))) if maker + 1 < count else []
    parts = sorted(draw(st.sets(st.integers(0, maker - 1), max_size=2))) if maker > 0 and draw(st.booleans()) else []
    return Buffer(draw(st.integers(0, 100)), maker, tuple(users), draw(st.booleans()), tuple(parts))


def _written_over(draw: st.DrawFn, found: list[Buffer]) -> tuple[Buffer, ...]:
    """Some of the buffers may be written over others, which their makers use; these get the same size."""
    sizes = [one.size for one in found]
    over: list[tuple[int, ...]] = [()] * len(found)
    for number, one in enumerate(found):
        used = [place for place, other in enumerate(found) if place != number and one.maker in other.users]
        if one.maker >= 0 and used and draw(st.booleans()):
            over[number] = tuple(draw(st.lists(st.sampled_from(used), max_size=2, unique=True)))
    for number, places in enumerate(over):
        for place in places:
            sizes[place] = sizes[number]
    same = [tuple(place for place in places if sizes[place] == sizes[number]) for number, places in enumerate(over)]
    return tuple(replace(one, size=size, over=places) for one, size, places in zip(found, sizes, same, strict=True))


def consistent(program: Program) -> Program:
    """The program with a need for each use of a buffer, as real programs have."""
    needs = [set(task.needs) for task in program.tasks]
    for buffer in program.buffers:
        for user in buffer.users:
            if buffer.maker >= 0:
                needs[user].add(buffer.maker)
        if buffer.maker >= 0:
            needs[buffer.maker].update(buffer.parts)
    tasks = tuple(replace(task, needs=tuple(sorted(need))) for task, need in zip(program.tasks, needs, strict=True))
    return Program(tasks, program.buffers)
