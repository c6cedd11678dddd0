"""What the scheduler sees: tasks, the memory they hold, and what an order of them costs.

In:    a `Program`, which an adapter reads off an FX graph or off Inductor's kernels, and an order of its tasks.
Out:   a `Timeline`: when each task runs, how much communication is exposed, and the bytes that are alive.
Never: knows what a task computes; looks at a clock. Equal programs give equal timelines on every rank.

The machine model: the compute stream runs one task after another. A launch costs it next to nothing and occupies its
channel (a process group) and the link that this shares with other groups for `seconds`, behind the launches before it:
on a link, one collective after another takes as long in all as several at once. A wait stops the compute stream until
the collective it waits for is through. While a launch is in flight, compute takes `1 + slows` times as long: it shares
memory, processors or compute units with the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a task does to the two kinds of streams."""

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
    """Time on the compute stream; of a launch: time of the collective on its channel."""
    role: Role = Role.COMPUTE
    channel: str = ""
    """Process group of a launch."""
    launch: int = -1
    """Of a wait: the launch that it waits for."""
    link: str = ""
    """Of a launch: the wires that its channel shares with others; empty: it has its own."""
    slows: float = 0.0
    """Of a launch: part by which compute takes longer while it is in flight."""
    terms: tuple[str, ...] = ()
    """Of a launch: names of the terms of the residual stream that it is a part of; for reports."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """A piece of memory: from the task that makes it to the last task that uses it."""

    size: int
    """Bytes."""
    maker: int = -1
    """Task that makes it; -1 for an input."""
    users: tuple[int, ...] = ()
    kept: bool = False
    """Alive at the end, or not ours to free: an output, a parameter."""


@dataclass(frozen=True)
class Program:
    """Tasks in their original order, and the memory they use.

    Raises:
        ValueError: a task needs itself or a later one, or a wait names no launch before it.
    """

    tasks: tuple[Task, ...]
    buffers: tuple[Buffer, ...] = ()

    def __post_init__(self) -> None:
        for index, task in enumerate(self.tasks):
            if any(not 0 <= need < index for need in task.needs):
                raise ValueError(f"task {index} ({task.name}) needs a task that is not before it: {task.needs}")
            launched = 0 <= task.launch < index and self.tasks[task.launch].role is Role.LAUNCH
            if task.role is Role.WAIT and not launched:
                raise ValueError(f"wait {index} ({task.name}) names no launch before it: {task.launch}")

    def in_flight(self) -> dict[int, int]:
        """For each launch, the bytes that are not free for others while it is in flight: what it reads and makes."""
        held = {index: 0 for index, task in enumerate(self.tasks) if task.role is Role.LAUNCH}
        for buffer in self.buffers:
            for index in {buffer.maker, *buffer.users} & held.keys():
                held[index] += buffer.size
        return held


def needs_of(program: Program) -> list[set[int]]:
    """For each task all that must run before it: what it needs, the launch that it waits for, and the launch before it
    on its channel, since those keep their order."""
    found = []
    turn: dict[str, int] = {}
    for index, task in enumerate(program.tasks):
        needs = set(task.needs)
        if task.role is Role.WAIT:
            needs.add(task.launch)
        elif task.role is Role.LAUNCH:
            if task.channel in turn:
                needs.add(turn[task.channel])
            turn[task.channel] = index
        found.append(needs)
    return found


class Wires:
    """The channels of a program, and how their traffic slows compute."""

    def __init__(self) -> None:
        self._channels: dict[str, float] = {}
        self._links: dict[str, float] = {}
        self._slows: dict[str, float] = {}

    def launch(self, now: float, task: Task) -> tuple[float, float]:
        """When a launch that is issued `now` starts, behind those on its channel and its link, and is through."""
        link = task.link or task.channel
        start = max(now, self._channels.get(task.channel, 0.0), self._links.get(link, 0.0))
        self._channels[task.channel] = self._links[link] = start + task.seconds
        if task.slows:
            self._slows[link] = task.slows
        return start, start + task.seconds

    def run(self, now: float, seconds: float) -> float:
        """When `seconds` of compute that start `now` are done."""
        if self._slows and seconds:
            busy = sorted((end, self._slows.get(name, 0.0)) for name, end in self._links.items() if end > now)
            slows = sum(slow for _, slow in busy)
            for end, slow in busy:
                if (end - now) >= seconds * (1 + slows):
                    return now + seconds * (1 + slows)
                seconds -= (end - now) / (1 + slows)
                now = end
                slows -= slow
        return now + seconds

    def idle_at(self) -> float:
        """When everything that has been launched is through."""
        return max(self._links.values(), default=0.0)


@dataclass(frozen=True)
class Timeline:
    """What an order of a program's tasks costs, in the machine model."""

    start: tuple[float, ...]
    """Seconds at which each task starts, by task index; of a launch: at which its channel takes it up."""
    end: tuple[float, ...]
    """Seconds at which it is through; of a launch: at which its collective is."""
    makespan: float
    """Seconds until everything is through."""
    compute: float
    """Seconds of compute tasks, longer than estimated where launches in flight slow them."""
    communication: float
    """Seconds of collectives, summed over the channels."""
    exposed: float
    """Seconds in which the compute stream stands still for a collective."""
    peak_bytes: int
    """Most bytes alive at once."""
    peak_in_flight_bytes: int
    """Most bytes that launched and not yet awaited collectives read and write."""


def simulate(program: Program, order: Sequence[int]) -> Timeline:
    """Run `order` in the machine model. `order` must be a permutation that keeps every dependence.

    Raises:
        ValueError: it is not.
    """
    check_order(program, order)
    start, end, compute, exposed, makespan = _play(program, order)
    return Timeline(
        tuple(start),
        tuple(end),
        makespan=makespan,
        compute=compute,
        communication=sum(task.seconds for task in program.tasks if task.role is Role.LAUNCH),
        exposed=exposed,
        peak_bytes=max(live_bytes(program, order), default=0),
        peak_in_flight_bytes=max(bytes_in_flight(program, order), default=0),
    )


def played(program: Program, order: Sequence[int]) -> tuple[float, float]:
    """Seconds until everything is through, and of exposed communication; `order` is not checked."""
    _, _, _, exposed, makespan = _play(program, order)
    return makespan, exposed


def _play(program: Program, order: Sequence[int]) -> tuple[list[float], list[float], float, float, float]:
    """Start and end of each task; seconds of compute, of exposed communication, and of all."""
    tasks = program.tasks
    start, end = [0.0] * len(tasks), [0.0] * len(tasks)
    wires = Wires()
    now = exposed = compute = 0.0
    for index in order:
        task = tasks[index]
        if task.role is Role.LAUNCH:
            start[index], end[index] = wires.launch(now, task)
            continue
        start[index] = now
        if task.role is Role.WAIT:
            exposed += max(0.0, end[task.launch] - now)
            now = max(now, end[task.launch])
        end[index] = wires.run(now, task.seconds)
        compute += end[index] - now
        now = end[index]
    tail = max(now, wires.idle_at())
    return start, end, compute, exposed + (tail - now), tail


@dataclass(frozen=True, slots=True)
class Flight:
    """A collective from its launch to its wait, in one order of a program; times in the machine model."""

    launch: str
    """Name of the task."""
    terms: tuple[str, ...]
    """The terms of the residual stream that it is a part of; empty if none is known."""
    channel: str
    """Process group."""
    start: float
    """Seconds at which its channel takes it up."""
    seconds: float
    """On the wire."""
    compute: float
    """Seconds of compute between launch and wait, none of which needs its result."""
    exposed: float
    """Seconds in which the compute stream stands still for it."""


def flights(program: Program, order: Sequence[int]) -> tuple[Flight, ...]:
    """The flight of each launch of `program`, in the order of the launches; `order` is not checked. Linear."""
    start, end, _, _, _ = _play(program, order)
    done = max((end[i] for i, task in enumerate(program.tasks) if task.role is not Role.LAUNCH), default=0.0)
    waited: dict[int, int] = {}
    before = [0.0]  # compute in front of each place
    for place, index in enumerate(order):
        task = program.tasks[index]
        if task.role is Role.WAIT:
            waited.setdefault(task.launch, place)
        before.append(before[-1] + (task.seconds if task.role is Role.COMPUTE else 0.0))
    found = []
    for place, index in enumerate(order):
        task = program.tasks[index]
        if task.role is Role.LAUNCH:
            wait = waited.get(index)
            compute = before[wait if wait is not None else -1] - before[place]
            awaited = start[order[wait]] if wait is not None else done
            exposed = max(0.0, end[index] - awaited)
            found.append(Flight(task.name, task.terms, task.channel, start[index], task.seconds, compute, exposed))
    return tuple(found)


def check_order(program: Program, order: Sequence[int]) -> None:
    """Raise unless `order` is a permutation of the tasks in which every task comes after what it needs."""
    if sorted(order) != list(range(len(program.tasks))):
        raise ValueError("the order is not a permutation of the tasks")
    position = {index: place for place, index in enumerate(order)}
    for index, task in enumerate(program.tasks):
        needs = (*task.needs, task.launch) if task.role is Role.WAIT else task.needs
        for need in needs:
            if position[need] > position[index]:
                raise ValueError(f"{task.name} comes before {program.tasks[need].name}, which it needs")


def live_bytes(program: Program, order: Sequence[int]) -> list[int]:
    """Bytes alive while each task of `order` runs: allocated before it, freed after it."""
    position = {index: place for place, index in enumerate(order)}
    change = [0] * (len(order) + 1)
    for buffer in program.buffers:
        first = position[buffer.maker] if buffer.maker >= 0 else 0
        change[first] += buffer.size
        if not buffer.kept:
            last = max((position[user] for user in buffer.users), default=first)
            change[max(first, last) + 1] -= buffer.size
    alive, total = [], 0
    for delta in change[:-1]:
        total += delta
        alive.append(total)
    return alive


def bytes_in_flight(program: Program, order: Sequence[int]) -> list[int]:
    """Bytes that collectives in flight read and write, after each task of `order`."""
    held = program.in_flight()
    waits: dict[int, int] = {}
    for place, index in enumerate(order):
        if program.tasks[index].role is Role.WAIT:
            waits.setdefault(program.tasks[index].launch, place)
    flying, total, landing = [], 0, dict[int, int]()
    for place, index in enumerate(order):
        if index in held:
            total += held[index]
            landing[waits.get(index, len(order))] = landing.get(waits.get(index, len(order)), 0) + held[index]
        total -= landing.get(place, 0)
        flying.append(total)
    return flying
