# SPDX-License-Identifier: Apache-2.0
"""Which collective a kernel or a copy belongs to: what the launching side says.

In:    GPU work with the ids that tie it to its launch; the operators, titles and ranges of the host's threads.
Out:   for each piece of work the `Origin`: the collective that launched it, and what c10d recorded about that.
Never: guesses. A kernel of grouped sends and receives may be an all-to-all, a gather or a pipeline's exchange: where
       nothing around its launch says which, its origin is None.

Algorithm, first answer wins:
1. The arguments of the kernel itself: kineto repeats those of `record_param_comms` there (output_json.cpp,
   appendCollectiveArgs: "Collective name", "Process Group Name", "Process Group Ranks", ...).
2. The operator whose `External id` the work has: the innermost one that was open at its launch (kineto's
   CuptiActivityProfiler.cpp). Copies have only this: kineto repeats nothing there.
3. What was open at the runtime call of the same correlation id, on its thread: the innermost of all operators and of
   NVTX ranges of c10d and NCCL. A kernel that `aten::copy_` launches inside of `c10d::allgather_` is a copy.
4. The mark `nccl:all_to_all` that kineto draws around the work on its stream.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from farskip_compile.measure.profiling.events import LAUNCH_RECORD
from farskip_compile.measure.profiling.gpu_names import LaunchName, launched_by
from farskip_compile.measure.profiling.intervals import Segment
from farskip_compile.measure.profiling.lanes import Innermost, LaunchPlace


@dataclass(frozen=True, slots=True)
class C10dRecord:
    """What c10d records about a collective. None: not said."""

    kind: str | None
    group: str | None = None
    description: str | None = None
    ranks: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """The launch that a piece of work belongs to."""

    kind: str | None
    owns: bool
    """Whether all that it launches itself belongs to the collective, whatever its name."""
    record: C10dRecord | None = None


@dataclass(frozen=True, slots=True)
class Ids:
    """What ties work to its launch."""

    stream: str
    start: int
    correlation: int | None = None
    external: int | None = None
    record: C10dRecord | None = None


@dataclass
class Launches:
    """Filled while a profile is read, closed, then asked."""

    calls: dict[int, LaunchPlace] = field(default_factory=dict)
    """By correlation id: thread and moment of the call of CUDA or HIP."""
    _by_external: dict[int, Origin] = field(default_factory=dict)
    _records: dict[LaunchPlace, C10dRecord] = field(default_factory=dict)
    _titles: dict[str, list[Segment]] = field(default_factory=lambda: defaultdict(list))
    _marks: dict[str, list[Segment]] = field(default_factory=lambda: defaultdict(list))
    _around: Innermost = field(default_factory=lambda: Innermost({}))
    _drawn: Innermost = field(default_factory=lambda: Innermost({}))

    def add_operator(self, event: Segment, thread: str, external: int | None, record: C10dRecord | None) -> None:
        """An operator of a thread; `record`: what a `record_param_comms` says."""
        start, _, name = event
        if name == LAUNCH_RECORD and record is not None:
            self._records[thread, start] = record
            origin = Origin(record.kind, owns=True, record=record)
        elif (launch := launched_by(name)) is not None:
            origin = _origin(launch)
        else:
            return
        if external is not None:
            self._by_external[external] = origin

    def add_title(self, event: Segment, thread: str) -> None:
        """A range of a thread, which counts if it names a collective."""
        if launched_by(event[2]) is not None:
            self._titles[thread].append(event)

    def add_mark(self, event: Segment, stream: str) -> None:
        """A range that is drawn around work on a stream."""
        if launched_by(event[2]) is not None:
            self._marks[stream].append(event)

    def close(self, operators: Mapping[str, list[Segment]]) -> None:
        """All is read; `operators`: of each thread, without glue."""
        threads = {thread for thread, _ in self.calls.values()}
        self._around = Innermost(
            {t: [e for e in operators.get(t, ()) if self._tells(e, t)] + self._titles.get(t, []) for t in threads}
        )
        self._drawn = Innermost(self._marks)

    def _tells(self, event: Segment, thread: str) -> bool:
        """Whether an operator has a say in what it launches: `record_param_comms` without arguments has none."""
        return event[2] != LAUNCH_RECORD or (thread, event[0]) in self._records

    def origin(self, ids: Ids) -> Origin | None:
        """See the module's contract."""
        found = self._launched(ids)
        if ids.record is None:
            return found
        kind = ids.record.kind or (found.kind if found is not None else None)  # kineto may leave it out
        return Origin(kind, owns=True, record=ids.record)  # 1

    def _launched(self, ids: Ids) -> Origin | None:
        if ids.external is not None and (found := self._by_external.get(ids.external)) is not None:  # 2
            return found
        if ids.correlation is not None and (place := self.calls.get(ids.correlation)) is not None:  # 3
            around = self._around.at(*place)
            if around is not None and (found := self._of(around, place[0])) is not None:
                return found
        mark = self._drawn.at(ids.stream, ids.start)  # 4
        launch = launched_by(mark[2]) if mark is not None else None
        return None if launch is None else Origin(launch.kind, owns=False)

    def _of(self, event: Segment, thread: str) -> Origin | None:
        if event[2] == LAUNCH_RECORD:
            record = self._records[thread, event[0]]
            return Origin(record.kind, owns=True, record=record)
        launch = launched_by(event[2])
        return None if launch is None else _origin(launch)


def _origin(launch: LaunchName) -> Origin:
    return Origin(launch.kind, owns=launch.owns)
