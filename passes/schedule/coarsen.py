# SPDX-License-Identifier: Apache-2.0
"""Make a large program smaller for the search: what takes next to no time runs right before its only user.

In:    a `Program`.
Out:   a `Coarse`: a program of groups of tasks, and how to turn an order of it into one of the given program. If one
       keeps every dependence, so does the other, and by `simulate` both take equally long.
Never: groups a launch or a wait; groups tasks that are long compared to a collective, so that gaps are filled equally
       well.

Half of the nodes of an ATen graph are views and other things that take no time, and many others end up in the same
kernel as their user.

Algorithm, linear:
1. From the last task to the first: a compute task whose followers are all in one group joins that group, unless the
   tasks before the group's last one would become too long, or the task frees more memory than it takes and should not
   be put off. No cycle can arise: every path that leaves such a task leads into the group.
2. Within a group the original order stays; a group stands where its last task stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from farskip_compile.passes.schedule.program import Program, TaskRole

LONGEST = 0.02
"""Fraction of an average collective that all tasks of a group but the last may take together."""


@dataclass(frozen=True)
class Coarse:
    """A program of groups."""

    program: Program
    members: tuple[tuple[int, ...], ...]
    """Tasks of the given program, by task of `program`."""

    def expand(self, order: Sequence[int]) -> tuple[int, ...]:
        """An order of the groups as one of their tasks."""
        return tuple(task for group in order for task in self.members[group])


def coarsen(program: Program) -> Coarse:
    """The groups of `program`."""
    last = _last_members(program)  # 1.
    members: dict[int, list[int]] = {}
    for index, group in enumerate(last):
        members.setdefault(group, []).append(index)
    number = {group: place for place, group in enumerate(sorted(members))}

    def place(index: int) -> int:
        return number[last[index]]

    tasks, buffers = [], []
    for group in number:
        task, inside = program.tasks[group], members[group]
        needs = {place(need) for index in inside for need in program.tasks[index].needs} - {number[group]}
        seconds = sum(program.tasks[index].seconds for index in inside)
        launch = place(task.launch) if task.role is TaskRole.WAIT else -1
        tasks.append(replace(task, needs=tuple(sorted(needs)), seconds=seconds, launch=launch))
    for buffer in program.buffers:
        maker = place(buffer.maker) if buffer.maker >= 0 else -1
        users, parts = (tuple(sorted(set(map(place, tasks)))) for tasks in (buffer.users, buffer.parts))
        buffers.append(replace(buffer, maker=maker, users=users, parts=parts))
    return Coarse(Program(tuple(tasks), tuple(buffers)), tuple(tuple(members[group]) for group in number))


def _last_members(program: Program) -> list[int]:
    """For each task the last one of its group."""
    tasks = program.tasks
    collectives = [task.seconds for task in tasks if task.role is TaskRole.LAUNCH]
    longest = LONGEST * sum(collectives) / max(len(collectives), 1)
    gained = _memory_gained(program)
    followers: list[set[int]] = [set() for _ in tasks]
    last = list(range(len(tasks)))
    seconds = [0.0] * len(tasks)
    for index in range(len(tasks) - 1, -1, -1):
        task = tasks[index]
        groups = followers[index]
        if task.role is TaskRole.COMPUTE and len(groups) == 1 and gained[index] <= 0:
            (group,) = groups
            if tasks[group].role is TaskRole.COMPUTE and seconds[group] + task.seconds <= longest:
                last[index] = group
                seconds[group] += task.seconds
        for need in (*task.needs, task.launch) if task.role is TaskRole.WAIT else task.needs:
            followers[need].add(last[index])
    return last


def _memory_gained(program: Program) -> list[int]:
    """For each task the bytes that are free once it has run, since nothing else uses them, less what it allocates."""
    gained = [0] * len(program.tasks)
    for buffer in program.buffers:
        users = {*buffer.users} - {buffer.maker}
        if buffer.maker >= 0:
            gained[buffer.maker] -= buffer.size
        if len(users) == 1 and not buffer.kept:
            gained[users.pop()] += buffer.size
    return gained
