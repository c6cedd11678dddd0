"""The least time that any schedule of a program needs, and the part of it that no schedule can hide.

In:    a `Program` of `farskip_compile.passes.schedule.program`: the kernels of one compiled graph, with their costs.
Out:   seconds; never more than the makespan of any order that keeps every dependence and, on each channel, the order of
       the launches, as every schedule here does.
Never: decides anything: it is for reports.

For launches c in their order, with S(...) the compute of a set of tasks:
    head(c)   the collective of c can't be taken up before: S(ancestors of c), and, for every earlier launch b of which
              a wait is an ancestor of c, or that is on the same channel, head(b) + seconds(b) + S(what comes behind a
              wait of b and before c)
    tail(c)   S(what comes behind a wait of c)
    bound     max(all compute, the communication of each link, head(c) + seconds(c) + tail(c) for each c)
That compute is slower while a collective is in flight is left out of it, and told apart: on a link that is busy for B
seconds and slows compute C by the part s, nothing takes less than B + max(0, C - B / (1 + s)).
Sets are bits of an integer; O(launches^2) of them are made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from farskip_compile.passes.schedule.program import Program, Role, Task


@dataclass(frozen=True)
class Bound:
    """Of one program, or of several that run one after another; seconds."""

    total: float
    """No schedule takes less."""
    compute: float
    communication: float
    """Of the busiest link."""
    slowed: float
    """The same as `total`, with compute that is slower while a collective is in flight."""

    @property
    def unhideable(self) -> float:
        """What no schedule can hide: `total` over the larger of compute and communication."""
        return self.total - max(self.compute, self.communication)


def scaled(programs: Sequence[Program], compute: float, communication: float) -> list[Program]:
    """`programs` with seconds that sum up to what was measured: estimates say how they are shared out.

    Args:
        programs: that run one after another.
        compute: seconds of all of it alone.
        communication: seconds of all collectives, one after another.
    """
    tasks = [task for program in programs for task in program.tasks]
    on_wire = sum(task.seconds for task in tasks if task.role is Role.LAUNCH)
    computed = sum(task.seconds for task in tasks if task.role is not Role.LAUNCH)
    wire, own = communication / on_wire if on_wire else 1.0, compute / computed if computed else 1.0

    def resized(task: Task) -> Task:
        return replace(task, seconds=task.seconds * (wire if task.role is Role.LAUNCH else own))

    return [replace(program, tasks=tuple(map(resized, program.tasks))) for program in programs]


def bound_of(programs: Iterable[Program]) -> Bound:
    """Of programs that run one after another, such as forward and backward graph: nothing is hidden across them."""
    bounds = [_bound(program) for program in programs]
    return Bound(
        total=sum(bound.total for bound in bounds),
        compute=sum(bound.compute for bound in bounds),
        communication=sum(bound.communication for bound in bounds),
        slowed=sum(bound.slowed for bound in bounds),
    )


def _bound(program: Program) -> Bound:
    tasks = program.tasks
    before = _ancestors(program)
    launches = [index for index, task in enumerate(tasks) if task.role is Role.LAUNCH]
    waits: dict[int, int] = defaultdict(int)
    for index, task in enumerate(tasks):
        if task.role is Role.WAIT:
            waits[task.launch] |= 1 << index
    behind = {c: _descendants(before, waits[c]) for c in launches}

    def compute(members: int) -> float:
        return sum(tasks[i].seconds for i in _members(members) if tasks[i].role is not Role.LAUNCH)

    head: dict[int, float] = {}
    least = 0.0
    for c in launches:
        earliest = compute(before[c])
        for b in head:
            if waits[b] & before[c] or tasks[b].channel == tasks[c].channel:
                earliest = max(earliest, head[b] + tasks[b].seconds + compute(behind[b] & before[c]))
        head[c] = earliest
        least = max(least, earliest + tasks[c].seconds + compute(behind[c]))
    busy: dict[str, float] = defaultdict(float)
    interference: dict[str, float] = {}
    for c in launches:
        link = tasks[c].link or tasks[c].channel
        busy[link] += tasks[c].seconds
        interference[link] = min(interference.get(link, tasks[c].interference), tasks[c].interference)
    everything = sum(task.seconds for task in tasks if task.role is not Role.LAUNCH)
    busiest = max(busy.values(), default=0.0)
    total = max(least, everything, busiest)
    slower = (seconds + max(0.0, everything - seconds / (1 + interference[link])) for link, seconds in busy.items())
    return Bound(total, everything, busiest, slowed=max(total, *slower) if busy else total)


def _ancestors(program: Program) -> list[int]:
    """For each task the tasks that run before it in every order; launches of one channel keep theirs."""
    found: list[int] = []
    last: dict[str, int] = {}
    for index, task in enumerate(program.tasks):
        needs = set(task.needs)
        if task.role is Role.WAIT:
            needs.add(task.launch)
        if task.role is Role.LAUNCH:
            if task.channel in last:
                needs.add(last[task.channel])
            last[task.channel] = index
        bits = 0
        for need in needs:
            bits |= found[need] | 1 << need
        found.append(bits)
    return found


def _descendants(before: list[int], of: int) -> int:
    """Tasks of which one of `of` is an ancestor, and `of` itself."""
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
