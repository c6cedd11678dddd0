# SPDX-License-Identifier: Apache-2.0
"""The events of one rank, collected by a reader of profiles, and the `Trace` made from them.

In:    operators, ranges, works of collectives, kernels and copies, in any order; times in nanoseconds since the epoch,
       printable names.
Out:   a `Trace`.
Never: knows a file format (`chrome.py`, `nsys.py`), or judges a name (`events.py`, `gpu_names.py`).

The device decides which events are compute and which are communication:
- In a trace with GPU kernels, a collective is work with the name of one (kernels of NCCL, RCCL, NVSHMEM, symmetric
  memory, custom all-reduces, copies between GPUs), or work that an operator launched which only communicates. Compute
  is every other kernel on any stream. Other copies, and fills, are kept apart. Collectives of CPU tensors (gloo) are
  left out, with a note.
- In other traces, collectives are the works of gloo, MPI or UCC, which run on threads of their own, and compute is the
  result of `lanes.compute_only` on all other threads. Operators that such a work runs itself are part of it.

The kind of a GPU collective is the one that the launching side recorded, else that of the kernel's name. If the name is
vague, the operator that launched the kernel decides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from farskip_compile.measure.profiling import events
from farskip_compile.measure.profiling.data import Collective, CollectiveDevice, Trace
from farskip_compile.measure.profiling.events import EventRole
from farskip_compile.measure.profiling.gpu_families import Trait
from farskip_compile.measure.profiling.gpu_names import PEER_COPY, SEND_RECV, GpuWork, function_of, work_of
from farskip_compile.measure.profiling.intervals import Segment, Span, union
from farskip_compile.measure.profiling.lanes import C10dLaunch, LayerRanges, compute_only, link_by_order, segments
from farskip_compile.measure.profiling.launches import C10dRecord, Launches, LaunchIds, LaunchOrigin
from farskip_compile.text_utils import amount, shortened

UNKNOWN = GpuWork("collective", Trait.VAGUE | Trait.LOOSE)
"""The work of a kernel that a collective launched, if the kernel's name states nothing."""
COALESCED = "coalesced"
_START = attrgetter("start", "end")


@dataclass
class RawEvents:
    """The events of a profile, sorted by category."""

    launches: Launches = field(default_factory=Launches)
    operators: dict[str, list[Segment]] = field(default_factory=lambda: defaultdict(list))
    ranges: dict[str, list[Segment]] = field(default_factory=lambda: defaultdict(list))
    gpu: list[tuple[Segment, bool, LaunchIds]] = field(default_factory=list)
    """Work on a GPU; whether it is a copy or a fill; and the ids of its launch."""
    cpu_collectives: list[tuple[Collective, str]] = field(default_factory=list)
    graphs: list[Segment] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unfinished: int = 0
    _linked: list[C10dLaunch] = field(default_factory=list)
    _shows_fused_kernels: bool = False

    def add_host(
        self,
        event: Segment,
        thread: str,
        *,
        operator: bool,
        external: int | None = None,
        record: C10dRecord | None = None,
    ) -> None:
        """Add an operator or a range of a thread of the host."""
        start, end, name = event
        kind = events.cpu_collective(name)
        if kind is not None:
            self.cpu_collectives.append((Collective(kind, start, end, name.split(":")[0]), thread))
        elif not operator or events.role(name) is EventRole.GLUE:
            if name.startswith(events.COMPILED_REGION):  # an annotation, if shapes are recorded, else an operator
                self.graphs.append(event)
            if not operator:
                self.launches.add_title(event, thread)
                if events.layer_of(name) is not None:
                    self.ranges[thread].append(event)
        else:
            self.operators[thread].append(event)
            self.launches.add_operator(event, thread, external, record)
            self._shows_fused_kernels |= events.is_fused_kernel(name)
            if (launched := events.launched_kind(name)) is not None:
                self._linked.append(C10dLaunch(*launched, (thread, start)))

    def trace(self, **about: Any) -> Trace:
        """Return the trace of all events, with launches and layers; `about` has the other fields of `Trace`."""
        layers = LayerRanges(self.ranges)
        works: dict[str, list[Segment]] = defaultdict(list)
        copies: dict[str, list[Segment]] = defaultdict(list)
        found: list[Collective] = []
        notes = _Notes()
        self.launches.close(self.operators)
        for event, is_copy, ids in self.gpu:
            origin, work = self.launches.origin(ids), work_of(event[2])
            if work is None and origin is not None and origin.owns:
                work = UNKNOWN
            if work is not None:
                collective = _collective(event, ids.stream, work, origin)
                notes.count(event[2], collective, work)
                place = self.launches.calls.get(ids.correlation) if ids.correlation is not None else None
                found.append(layers.place(collective, place) if place else collective)
            else:
                (copies if is_copy else works)[ids.stream].append(event)
        on_gpu = bool(works or found)
        in_order = sorted((one for one, _ in self.cpu_collectives), key=_START)
        waits: list[Span] = []
        for lane in self.operators.values():
            waits += ((start, end) for start, end, name in lane if events.role(name) is EventRole.WAIT)
        return Trace(
            device=CollectiveDevice.GPU if on_gpu else CollectiveDevice.CPU,
            collectives=tuple(sorted(found, key=_START) if on_gpu else link_by_order(in_order, self._linked, layers)),
            work=_by_lane(works) if on_gpu else self._cpu_work(),
            copies=_by_lane(copies) if on_gpu else {},
            waits=[] if on_gpu else union(waits),
            graphs=sorted(self.graphs),
            notes=(*self._notes(on_gpu), *notes.texts(), *self.notes),
            **about,
        )

    def _cpu_work(self) -> dict[str, list[Segment]]:
        """Return the compute of every thread, without threads that only run works of collectives."""
        workers = {thread for _, thread in self.cpu_collectives}
        lanes = {}
        for thread, found in sorted(self.operators.items()):
            launches = any(events.role(name) in (EventRole.LAUNCH, EventRole.WAIT) for _, _, name in found)
            if (thread not in workers or launches) and (lane := compute_only(found)):
                lanes[f"thread {thread.split('/')[1]}"] = lane
        return lanes

    def _notes(self, on_gpu: bool) -> list[str]:
        notes = []
        if not on_gpu and self.graphs and not self._shows_fused_kernels:
            notes.append(
                "compiled code ran, but no fused kernel has an event: what these kernels hid is missing here. Compile "
                "with torch._inductor.config.cpp.enable_kernel_profile, as "
                "farskip_compile.measure.profiling.record does."
            )
        if on_gpu and self.cpu_collectives:
            notes.append(f"{amount(len(self.cpu_collectives), 'collective')} of CPU tensors left out; the GPU's count.")
        if self.unfinished:
            notes.append(f"{amount(self.unfinished, 'event')} without an end left out.")
        return notes


def _collective(event: Segment, stream: str, work: GpuWork, origin: LaunchOrigin | None) -> Collective:
    record = (origin.record if origin is not None else None) or C10dRecord(None)
    kind = record.kind or work.kind
    if record.kind is None and Trait.VAGUE in work.traits and origin is not None and origin.kind is not None:
        kind = origin.kind
    if kind == COALESCED and work.kind == SEND_RECV:  # of what c10d coalesces, only these are grouped sends
        kind = "batch_isend_irecv"
    label = record.description or record.group
    return Collective(
        kind,
        event[0],
        event[1],
        f"{label} ({stream})" if label else stream,
        record.group,
        record.ranks,
        loose=Trait.LOOSE in work.traits,
    )


def _by_lane(found: dict[str, list[Segment]]) -> dict[str, list[Segment]]:
    return {stream: segments(kernels) for stream, kernels in sorted(found.items())}


class _Notes:
    """Counts for the notes that a reader of a GPU report needs."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.fused: Counter[str] = Counter()

    def count(self, name: str, one: Collective, work: GpuWork) -> None:
        """Count one kernel or copy that is the collective `one`."""
        self.kinds[one.kind] += 1
        if Trait.FUSED in work.traits:
            self.fused[shortened(function_of(name).rsplit("::", 1)[-1], 60)] += 1

    def texts(self) -> list[str]:
        """Return the notes that apply."""
        notes = []
        if grouped := self.kinds[SEND_RECV]:
            notes.append(
                f"{amount(grouped, 'kernel')} of grouped sends and receives (send_recv): an all-to-all, a gather, a "
                "scatter or a pipeline's exchange. Nothing around the launch says which. torch.profiler with CPU "
                "activities shows it, or NVTX ranges of operators (nsys profile --pytorch=autograd-nvtx); kernels of "
                "CUDA graphs never do."
            )
        if vague := self.kinds["collective"] + self.kinds[COALESCED]:
            notes.append(
                f"{amount(vague, 'collective')} of unknown kind: the kernel's name is the same for all, and nothing "
                "around the launch says which it is."
            )
        if copied := self.kinds[PEER_COPY]:
            notes.append(
                f"Copies between GPUs ({copied}) count as communication (peer_copy): exchanges by copy engines look so."
            )
        if self.fused:
            names = ", ".join(sorted(self.fused)[:3]) + (", ..." if len(self.fused) > 3 else "")
            notes.append(
                f"Kernels that communicate and compute at once ({self.fused.total()}: {names}) count as communication "
                "alone: exposure may come out too large."
            )
        return notes
