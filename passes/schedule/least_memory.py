# SPDX-License-Identifier: Apache-2.0
"""An order that holds little memory: what a program needs if nothing is done to overlap.

In:    a `Program`.
Out:   a permutation of its tasks that keeps every dependence and the order of the launches on each channel.
Never: asks what an order costs in time; looks far: it is greedy, as Inductor's own reordering for memory is.

Algorithm, linear but for the list of what is ready:
1. Of the first few tasks that are ready, in the original order, the one goes first that leaves least alive; of equal
   ones, the one that needs least while it runs, then the earliest.
2. Repeat with what has become ready.
"""

from __future__ import annotations

from bisect import insort

from farskip_compile.passes.schedule.memory import LiveMemory, MemoryPlan
from farskip_compile.passes.schedule.program import Program, followers_of, needs_of

CANDIDATES = 16
"""How many ready tasks are looked at; bounds the time per step."""


def least_memory(program: Program) -> tuple[int, ...]:
    """The order."""
    needs = needs_of(program)
    followers = followers_of(needs)
    missing = [len(before) for before in needs]
    memory = LiveMemory(MemoryPlan(program))
    ready = [index for index, count in enumerate(missing) if count == 0]
    order = []
    while ready:
        index = min(ready[:CANDIDATES], key=lambda one: (*memory.afterwards(one), one))  # 1.
        ready.remove(index)
        order.append(index)
        memory.run(index, program.tasks[index].launch)
        for follower in followers[index]:  # 2.
            missing[follower] -= 1
            if missing[follower] == 0:
                insort(ready, follower)
    return tuple(order)
