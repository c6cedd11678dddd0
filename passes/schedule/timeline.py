# SPDX-License-Identifier: Apache-2.0
"""The machine model: what an order of a program costs.

In:    a `Program` and an order of its tasks.
Out:   a `Timeline`: when each task runs, how much communication is exposed, and the bytes that are alive; the flight of
       each collective.
Never: decides anything; looks at a clock. Equal programs give equal timelines on every rank.

The compute stream runs one task after another. A launch costs it next to nothing and occupies its channel (a process
group), and the link that the channel shares with others, for `seconds`, after the launches before it: on one link,
collectives take as long one after another as they do all at once. A wait stops the compute stream until its collective
has finished; nothing waits here for a launch that leaves, for which the next graph does, nor does its time count, but
for `late`. While a launch is in flight, compute takes `1 + interference` times as long: it shares memory, processors
or compute units with the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from farskip_compile.passes.schedule.memory import bytes_in_flight, live_bytes
from farskip_compile.passes.schedule.program import Program, Task, TaskRole, check_order


class NetworkChannels:
    """The channels of a program while it runs, and how their traffic slows compute."""

    def __init__(self) -> None:
        self._channels: dict[str, float] = {}
        self._links: dict[str, float] = {}
        self._interference: dict[str, float] = {}

    def launch(self, now: float, task: Task) -> tuple[float, float]:
        """When a launch that is issued `now` starts, after those on its channel and its link, and when it ends."""
        link = task.link or task.channel
        start = max(now, self._channels.get(task.channel, 0.0), self._links.get(link, 0.0))
        self._channels[task.channel] = self._links[link] = start + task.seconds
        if task.interference:
            self._interference[link] = task.interference
        return start, start + task.seconds

    def run(self, now: float, seconds: float) -> float:
        """When `seconds` of compute that start `now` are done."""
        if self._interference and seconds:
            busy = sorted((end, self._interference.get(name, 0.0)) for name, end in self._links.items() if end > now)
            slower = sum(one for _, one in busy)
            for end, one in busy:
                if (end - now) >= seconds * (1 + slower):
                    return now + seconds * (1 + slower)
                seconds -= (end - now) / (1 + slower)
                now = end
                slower -= one
        return now + seconds


@dataclass(frozen=True)
class Timeline:
    """What an order of a program's tasks costs, in the machine model."""

    start: tuple[float, ...]
    """Seconds at which each task starts, by task index; for a launch, at which its channel takes it up."""
    end: tuple[float, ...]
    """Seconds at which it ends; for a launch, at which its collective does."""
    makespan: float
    """Seconds until everything is done."""
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
    late: float = 0.0
    """Seconds after `makespan` until the launches that leave have landed."""


class RunTimes(NamedTuple):
    """The times of an order, see `Timeline`."""

    start: list[float]
    end: list[float]
    compute: float
    exposed: float
    makespan: float
    late: float


def run_timeline(program: Program, order: Sequence[int]) -> RunTimes:
    """Run `order` in the machine model; it is not checked, and memory is not counted. Linear."""
    tasks = program.tasks
    start, end = [0.0] * len(tasks), [0.0] * len(tasks)
    network = NetworkChannels()
    now = exposed = compute = landed = left = 0.0
    for index in order:
        task = tasks[index]
        if task.role is TaskRole.LAUNCH:
            start[index], end[index] = network.launch(now, task)
            landed, left = (landed, end[index]) if task.leaves else (max(landed, end[index]), left)
            continue
        start[index] = now
        if task.role is TaskRole.WAIT:
            exposed += max(0.0, end[task.launch] - now)
            now = max(now, end[task.launch])
        end[index] = network.run(now, task.seconds)
        compute += end[index] - now
        now = end[index]
    makespan = max(now, landed)
    return RunTimes(start, end, compute, exposed + (makespan - now), makespan, max(0.0, left - makespan))


def simulate(program: Program, order: Sequence[int]) -> Timeline:
    """Run `order` in the machine model; a `ValueError` unless it is a permutation that keeps every dependence."""
    check_order(program, order)
    run = run_timeline(program, order)
    return Timeline(
        tuple(run.start),
        tuple(run.end),
        makespan=run.makespan,
        compute=run.compute,
        communication=sum(task.seconds for task in program.tasks if task.role is TaskRole.LAUNCH),
        exposed=run.exposed,
        peak_bytes=max(live_bytes(program, order), default=0),
        peak_in_flight_bytes=max(bytes_in_flight(program, order), default=0),
        late=run.late,
    )


@dataclass(frozen=True, slots=True)
class ScheduledFlight:
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


def flights(program: Program, order: Sequence[int]) -> tuple[ScheduledFlight, ...]:
    """The flight of each launch of `program`, in the order of the launches; `order` is not checked. Linear."""
    start, end, *_ = run_timeline(program, order)
    done = max((end[i] for i, task in enumerate(program.tasks) if task.role is not TaskRole.LAUNCH), default=0.0)
    waited: dict[int, int] = {}
    before = [0.0]  # compute before each place
    for place, index in enumerate(order):
        task = program.tasks[index]
        if task.role is TaskRole.WAIT:
            waited.setdefault(task.launch, place)
        before.append(before[-1] + (task.seconds if task.role is TaskRole.COMPUTE else 0.0))
    found = []
    for place, index in enumerate(order):
        task = program.tasks[index]
        if task.role is TaskRole.LAUNCH:
            wait = waited.get(index)
            compute = before[wait if wait is not None else -1] - before[place]
            awaited = start[order[wait]] if wait is not None else done
            exposed = 0.0 if task.leaves else max(0.0, end[index] - awaited)
            found.append(
                ScheduledFlight(task.name, task.terms, task.channel, start[index], task.seconds, compute, exposed)
            )
    return tuple(found)
