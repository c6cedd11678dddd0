"""Bytes alive and bytes in flight while an order of a program is being built.

In:    a `Program`; then its tasks, one after another.
Out:   at each moment what is alive, what a task would add, and what collectives in flight hold.
Never: decides anything; the same as `program.live_bytes` and `program.bytes_in_flight` on the whole order.
"""

from __future__ import annotations

from farskip_compile.passes.schedule.program import Program


class MemoryPlan:
    """What every order of a program has in common: who allocates how much, and who uses what."""

    def __init__(self, program: Program) -> None:
        self.allocates = [0] * len(program.tasks)
        self.uses: list[list[int]] = [[] for _ in program.tasks]
        self.left: list[int] = []
        self.sizes: list[int] = []
        self.held = program.in_flight()
        self.inputs = 0
        for number, buffer in enumerate(program.buffers):
            if buffer.maker >= 0:
                self.allocates[buffer.maker] += buffer.size
            else:
                self.inputs += buffer.size
            users = {index for index in (buffer.maker, *buffer.users) if index >= 0}
            self.left.append(len(users) + buffer.kept)
            self.sizes.append(buffer.size)
            for index in users:
                self.uses[index].append(number)


class LiveMemory:
    """Accounts of an order in the making."""

    def __init__(self, plan: MemoryPlan) -> None:
        self.allocates, self.uses, self.sizes = plan.allocates, plan.uses, plan.sizes
        self.left = plan.left.copy()
        self.held = plan.held.copy()
        self.alive, self.flying = plan.inputs, 0

    def run(self, index: int, launch: int) -> None:
        """Account for a task that runs; `launch` is the collective that it waits for, or -1."""
        self.alive += self.allocates[index]
        for number in self.uses[index]:
            self.left[number] -= 1
            if self.left[number] == 0:
                self.alive -= self.sizes[number]
        self.flying += self.held.get(index, 0)
        if launch >= 0:
            self.flying -= self.held.pop(launch, 0)
