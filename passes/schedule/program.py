# SPDX-License-Identifier: Apache-2.0
"""The scheduler's input: tasks, what they need, and the memory they use.

In:    tasks and buffers, which an adapter reads off an FX graph (`from_graph`) or off Inductor's kernels
       (`from_kernels`).
Out:   a `Program`, whose original order is valid; the dependences that every order must keep; valid orders, by a key or
       as close as possible to a given order.
Never: knows what a task computes or what an order costs (see `timeline` and `memory`).
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from farskip_compile.passes.schedule.lifetimes import Lifetimes


class TaskRole(StrEnum):
    """What a task does to the compute stream and the network."""

    COMPUTE = "compute"
    LAUNCH = "launch"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Task:
    """One step of a program; its position in the program is its index."""

    name: str
    needs: tuple[int, ...] = ()
    """Tasks that must run before it."""
    seconds: float = 0.0
    """Time on the compute stream; for a launch, time of the collective on its channel."""
    role: TaskRole = TaskRole.COMPUTE
    channel: str = ""
    """Process group of a launch."""
    launch: int = -1
    """For a wait: the launch that it waits for."""
    link: str = ""
    """For a launch: the wires that its channel shares with others; empty: it has its own."""
    interference: float = 0.0
    """For a launch: fraction by which compute takes longer while it is in flight."""
    terms: tuple[str, ...] = ()
    """For a launch: names of the terms of the residual stream that it is a part of; for reports."""
    leaves: bool = False
    """For a launch: the next graph waits for it."""
    came: bool = False
    """For a launch: an earlier graph has made it."""
    joins: bool = False
    """One function is generated for it and those beside it that join, too: what they free is freed at its end."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """A piece of memory: from the task that makes it to the last task that uses it."""

    size: int
    """Bytes."""
    maker: int = -1
    """Task that makes it, or completes it; -1 for an input."""
    users: tuple[int, ...] = ()
    kept: bool = False
    """Alive at the end, or not ours to free: an output, a parameter."""
    parts: tuple[int, ...] = ()
    """Tasks before the maker that make a part of it in place: the first of them needs all of the memory."""
    over: tuple[int, ...] = ()
    """Other buffers, as large, that its maker reads and may write it over, if that is their last use."""


@dataclass(frozen=True)
class Program:
    """Tasks in their original order, and the memory they use.

    Raises:
        ValueError: a task needs itself or a later one, or a wait names no earlier launch.
    """

    tasks: tuple[Task, ...]
    buffers: tuple[Buffer, ...] = ()

    def __post_init__(self) -> None:
        for index, task in enumerate(self.tasks):
            if any(not 0 <= need < index for need in task.needs):
                raise ValueError(f"task {index} ({task.name}) needs a task that is not before it: {task.needs}")
            launched = 0 <= task.launch < index and self.tasks[task.launch].role is TaskRole.LAUNCH
            if task.role is TaskRole.WAIT and not launched:
                raise ValueError(f"wait {index} ({task.name}) names no launch before it: {task.launch}")

    @cached_property
    def lifetimes(self) -> Lifetimes:
        """From which task to which each buffer lives."""
        return Lifetimes(self.tasks, self.buffers)


def bytes_leaving(program: Program) -> int:
    """Bytes that this program leaves in flight to one like it, if it is the first that does: of one that is left such
    bytes itself, they are a part of what it holds."""
    if any(task.came for task in program.tasks):
        return 0
    return sum(one.size for one in program.buffers if one.maker >= 0 and program.tasks[one.maker].leaves)


def needs_of(program: Program) -> list[set[int]]:
    """For each task, everything that must run before it: its needs, the launch that it waits for, and the previous
    launch on its channel, since the launches of a channel keep their order."""
    found = []
    previous: dict[str, int] = {}
    for index, task in enumerate(program.tasks):
        needs = set(task.needs)
        if task.role is TaskRole.WAIT:
            needs.add(task.launch)
        elif task.role is TaskRole.LAUNCH:
            if task.channel in previous:
                needs.add(previous[task.channel])
            previous[task.channel] = index
        found.append(needs)
    return found


def followers_of(needs: Sequence[Collection[int]]) -> list[list[int]]:
    """For each index, those that need it, in ascending order."""
    followers: list[list[int]] = [[] for _ in needs]
    for index, before in enumerate(needs):
        for need in before:
            followers[need].append(index)
    return followers


def order_by_key(keys: Sequence[Any], needs: Sequence[Collection[int]]) -> list[int]:
    """Indices of `keys`, each after what it needs (without a cycle), otherwise by key and then by index. O(n log n)."""
    missing = [len(before) for before in needs]
    followers = followers_of(needs)
    ready = [(keys[index], index) for index, count in enumerate(missing) if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        index = heapq.heappop(ready)[1]
        order.append(index)
        for follower in followers[index]:
            missing[follower] -= 1
            if missing[follower] == 0:
                heapq.heappush(ready, (keys[follower], follower))
    return order


def in_order_of(program: Program, order: Sequence[int]) -> tuple[int, ...]:
    """`order`, a permutation of the tasks, made valid: a task waits for what must run before it, and no longer."""
    keys = [0] * len(order)
    for place, index in enumerate(order):
        keys[index] = place
    return tuple(order_by_key(keys, needs_of(program)))


def check_order(program: Program, order: Sequence[int]) -> None:
    """A `ValueError` unless `order` is a permutation of the tasks in which every task comes after what it needs."""
    if sorted(order) != list(range(len(program.tasks))):
        raise ValueError("the order is not a permutation of the tasks")
    position = {index: place for place, index in enumerate(order)}
    for index, task in enumerate(program.tasks):
        needs = (*task.needs, task.launch) if task.role is TaskRole.WAIT else task.needs
        for need in needs:
            if position[need] > position[index]:
                raise ValueError(f"{task.name} comes before {program.tasks[need].name}, which it needs")
