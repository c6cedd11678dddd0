# SPDX-License-Identifier: Apache-2.0
"""The least time that any schedule of a program needs, and the part of it that no schedule can hide.

In:    a `Program` of `farskip_compile.passes.schedule.program`: the kernels of one compiled graph, with their costs.
Out:   seconds; never more than the makespan of any order that keeps every dependence and, on each channel, the order of
       the launches, as every schedule here does.
Never: decides anything: it is for reports.

For launches c in order, with S(...) the compute of a set of tasks, and "after c" what comes after a wait of c or of a
later launch on the same channel, which is not done before c is:
    head(c)   the earliest start of c's collective: S(ancestors of c), and, for every earlier launch b on the same
              channel, or with an ancestor of c after it, head(b) + seconds(b) + S(tasks after b and before c)
    tail(c)   S(tasks after c)
    bound     max(all compute, the communication of each link, head(c) + seconds(c) + tail(c) for each c)
So two pieces of one exchange, whose experts come one after the other, are known to leave the first dispatch and the
last combine exposed.
It ignores that compute is slower while a collective is in flight, which is reported separately: on a link that is busy
for B seconds and slows compute C by the fraction s, nothing takes less than B + max(0, C - B / (1 + s)).
Sets are bits of an integer; O(launches^2) of them are made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace

from farskip_compile.passes.schedule.program import Program, Task, TaskRole


@dataclass(frozen=True)
class Bound:
    """The bound of one program, or of several that run one after the other; seconds."""

    total: float
    """No schedule takes less."""
    compute: float
    communication: float
    """Of the busiest link."""
    slowed: float
    """`total` with compute that is slower while a collective is in flight."""

    @property
    def unhideable(self) -> float:
        """What no schedule can hide: `total` over the larger of compute and communication."""
        return self.total - max(self.compute, self.communication)


def scaled(programs: Sequence[Program], compute: float, communication: float) -> list[Program]:
    """`programs`, run one after the other, with seconds in proportion to the estimates that add up to what was measured
    of all compute alone and of all collectives, one after the other.
    """
    tasks = [task for program in programs for task in program.tasks]
    on_wire = sum(task.seconds for task in tasks if task.role is TaskRole.LAUNCH)
    computed = sum(task.seconds for task in tasks if task.role is not TaskRole.LAUNCH)
    wire, own = communication / on_wire if on_wire else 1.0, compute / computed if computed else 1.0

    def resized(task: Task) -> Task:
        return replace(task, seconds=task.seconds * (wire if task.role is TaskRole.LAUNCH else own))

    return [replace(program, tasks=tuple(map(resized, program.tasks))) for program in programs]


def bound_of(programs: Iterable[Program]) -> Bound:
    """Of programs that run one after another, such as forward and backward graph: nothing is hidden across them."""
    bounds = [astuple(_bound(program)) for program in programs]
    return Bound(*map(sum, zip((0.0,) * 4, *bounds, strict=True)))


def _bound(program: Program) -> Bound:
    tasks = program.tasks
    before = _ancestors(program)
    launches = [index for index, task in enumerate(tasks) if task.role is TaskRole.LAUNCH]
    waits: dict[int, int] = defaultdict(int)
    for index, task in enumerate(tasks):
        if task.role is TaskRole.WAIT:
            waits[task.launch] |= 1 << index
    later: dict[str, int] = defaultdict(int)
    for c in reversed(launches):
        later[tasks[c].channel] |= waits[c]
        waits[c] = later[tasks[c].channel]
    after = {c: _descendants(before, waits[c]) for c in launches}

    def compute(members: int) -> float:
        return sum(tasks[i].seconds for i in _members(members) if tasks[i].role is not TaskRole.LAUNCH)

    head: dict[int, float] = {}
    least = 0.0
    for c in launches:
        earliest = compute(before[c])
        for b in head:
            if waits[b] & before[c] or tasks[b].channel == tasks[c].channel:
                earliest = max(earliest, head[b] + tasks[b].seconds + compute(after[b] & before[c]))
        head[c] = earliest
        least = max(least, earliest + tasks[c].seconds + compute(after[c]))
    busy: dict[str, float] = defaultdict(float)
    interference: dict[str, float] = {}
    for c in launches:
        link = tasks[c].link or tasks[c].channel
        busy[link] += tasks[c].seconds
        interference[link] = min(interference.get(link, tasks[c].interference), tasks[c].interference)
    everything = sum(task.seconds for task in tasks if task.role is not TaskRole.LAUNCH)
    busiest = max(busy.values(), default=0.0)
    total = max(least, everything, busiest)
    slower = (seconds + max(0.0, everything - seconds / (1 + interference[link])) for link, seconds in busy.items())
    return Bound(total, everything, busiest, slowed=max(total, *slower) if busy else total)


def _ancestors(program: Program) -> list[int]:
    """For each task the tasks that precede it in every order; launches of one channel keep their order."""
    found: list[int] = []
    last: dict[str, int] = {}
    for index, task in enumerate(program.tasks):
        needs = set(task.needs)
        if task.role is TaskRole.WAIT:
            needs.add(task.launch)
        if task.role is TaskRole.LAUNCH:
            if task.channel in last:
                needs.add(last[task.channel])
            last[task.channel] = index
        bits = 0
        for need in needs:
            bits |= found[need] | 1 << need
        found.append(bits)
    return found


def _descendants(before: list[int], of: int) -> int:
    """Tasks with an ancestor in `of`, and `of` itself."""
    bits = of
    for index, ancestors in enumerate(before):
        if ancestors & of:
            bits |= 1 << index
    return bits


def _members(bits: int) -> Iterable[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
