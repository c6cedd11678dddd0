# SPDX-License-Identifier: Apache-2.0
"""The collective that a kernel or a copy belongs to, as the launching side names it.

In:    GPU work with the ids that tie it to its launch; the operators, titles and ranges of the host's threads.
Out:   the `LaunchOrigin` of each piece of work: the collective that launched it, and the record of c10d about it.
Never: guesses. A kernel of grouped sends and receives may be an all-to-all, a gather or a pipeline's exchange: if
       nothing around its launch says which, its origin is None.

Algorithm of `origin`; the first answer wins:
1. The arguments of the kernel itself: kineto repeats those of `record_param_comms` there (output_json.cpp,
   appendCollectiveArgs: "Collective name", "Process Group Name", "Process Group Ranks", ...).
2. The operator whose `External id` the work has: the innermost one that was open at its launch (kineto's
   CuptiActivityProfiler.cpp). Copies have only this: kineto repeats nothing there.
3. The innermost event that was open at the runtime call of the same correlation id, on its thread: an operator, or an
   NVTX range of c10d or NCCL. A kernel that `aten::copy_` launches inside of `c10d::allgather_` is a copy.
4. The mark `nccl:all_to_all` that kineto draws around the work on its stream.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from farskip_compile.measure.profiling.events import LAUNCH_RECORD
from farskip_compile.measure.profiling.gpu_names import launched_by
from farskip_compile.measure.profiling.intervals import Segment
from farskip_compile.measure.profiling.lanes import InnermostEvents, LaunchPlace


@dataclass(frozen=True, slots=True)
class C10dRecord:
    """The arguments of `record_param_comms`; None for an argument that is not there."""

    kind: str | None
    group: str | None = None
    description: str | None = None
    ranks: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class LaunchOrigin:
    """The launch that a piece of GPU work belongs to."""

    kind: str | None
    owns: bool
    """True if all work of this launch belongs to the collective, whatever the names of the kernels."""
    record: C10dRecord | None = None


@dataclass(frozen=True, slots=True)
class LaunchIds:
    """The ids that tie a piece of GPU work to its launch."""

    stream: str
    start: int
    correlation: int | None = None
    external: int | None = None
    record: C10dRecord | None = None


@dataclass
class Launches:
    """All launches of a profile: add events, `close`, then ask for origins."""

    calls: dict[int, LaunchPlace] = field(default_factory=dict)
    """Thread and moment of each call of CUDA or HIP, by correlation id."""
    _by_external: dict[int, LaunchOrigin] = field(default_factory=dict)
    _records: dict[LaunchPlace, C10dRecord] = field(default_factory=dict)
    _titles: dict[str, list[Segment]] = field(default_factory=lambda: defaultdict(list))
    _marks: dict[str, list[Segment]] = field(default_factory=lambda: defaultdict(list))
    _around: InnermostEvents = field(default_factory=lambda: InnermostEvents({}))
    _drawn: InnermostEvents = field(default_factory=lambda: InnermostEvents({}))

    def add_operator(self, event: Segment, thread: str, external: int | None, record: C10dRecord | None) -> None:
        """Add an operator of a thread, with the arguments of a `record_param_comms`."""
        start, _, name = event
        if name == LAUNCH_RECORD and record is not None:
            self._records[thread, start] = record
            origin: LaunchOrigin | None = LaunchOrigin(record.kind, owns=True, record=record)
        else:
            origin = _named_origin(name)
        if external is not None and origin is not None:
            self._by_external[external] = origin

    def add_title(self, event: Segment, thread: str) -> None:
        """Add a range of a thread if its name is that of a collective."""
        if launched_by(event[2]) is not None:
            self._titles[thread].append(event)

    def add_mark(self, event: Segment, stream: str) -> None:
        """Add a range that kineto draws around work on a stream."""
        if launched_by(event[2]) is not None:
            self._marks[stream].append(event)

    def close(self, operators: Mapping[str, list[Segment]]) -> None:
        """Index the events; `operators` are those of each thread, without glue."""
        around: dict[str, list[Segment]] = {}
        for thread in {thread for thread, _ in self.calls.values()}:
            telling = [event for event in operators.get(thread, ()) if self._names_a_launch(event, thread)]
            around[thread] = telling + self._titles.get(thread, [])
        self._around = InnermostEvents(around)
        self._drawn = InnermostEvents(self._marks)

    def _names_a_launch(self, event: Segment, thread: str) -> bool:
        """Return False for a `record_param_comms` without arguments, which says nothing about its launch."""
        return event[2] != LAUNCH_RECORD or (thread, event[0]) in self._records

    def origin(self, ids: LaunchIds) -> LaunchOrigin | None:
        """Return the launch that the work with `ids` belongs to; None if nothing names a collective."""
        found = self._launched(ids)
        if ids.record is None:
            return found
        kind = ids.record.kind or (found.kind if found is not None else None)  # kineto may leave it out
        return LaunchOrigin(kind, owns=True, record=ids.record)  # 1

    def _launched(self, ids: LaunchIds) -> LaunchOrigin | None:
        if ids.external is not None and (found := self._by_external.get(ids.external)) is not None:  # 2
            return found
        if ids.correlation is not None and (place := self.calls.get(ids.correlation)) is not None:  # 3
            around = self._around.at(*place)
            if around is not None and (found := self._origin_of(around, place[0])) is not None:
                return found
        mark = self._drawn.at(ids.stream, ids.start)  # 4
        found = _named_origin(mark[2]) if mark is not None else None
        return None if found is None else LaunchOrigin(found.kind, owns=False)

    def _origin_of(self, event: Segment, thread: str) -> LaunchOrigin | None:
        if event[2] == LAUNCH_RECORD:
            record = self._records[thread, event[0]]
            return LaunchOrigin(record.kind, owns=True, record=record)
        return _named_origin(event[2])


def _named_origin(name: str) -> LaunchOrigin | None:
    """Return the origin that the name of an operator or a range states; None if the name states none."""
    launched = launched_by(name)
    return None if launched is None else LaunchOrigin(*launched)
