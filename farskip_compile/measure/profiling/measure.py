# SPDX-License-Identifier: Apache-2.0
"""The overlap report: exposed and hidden communication by rank, collective, kind and layer, and the hiding kernels.

In:    the traces of one or several ranks.
Out:   an `OverlapReport`.
Never: adds up times that may overlap; compares clocks of different ranks, except to find waits for peers.

For each rank, compute is the union of its work on all threads or streams (on a GPU including copies and fills, unless
`count_copies` is off), and communication the union of its collectives. Exposed is the part of communication outside
compute. Each collective, kind and layer is measured alone in the same way. All steps are linear in the number of
events, apart from sorting.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from farskip_compile.measure.profiling.chrome import NoCollectivesError, RanksMissingError, TraceError
from farskip_compile.measure.profiling.data import (
    Collective,
    CollectiveDevice,
    CollectiveReport,
    Hider,
    OverlapReport,
    PartReport,
    RankReport,
    Trace,
)
from farskip_compile.measure.profiling.estimated import estimates
from farskip_compile.measure.profiling.intervals import Coverage, Segment, Span, difference, intersection, total, union
from farskip_compile.measure.profiling.peers import PeerMatch, match


def overlap(
    traces: Trace | Sequence[Trace],
    *,
    subtract_peer_wait: bool = False,
    count_copies: bool = True,
    layers: Sequence[int | None] | None = None,
) -> OverlapReport:
    """Report on exposed communication.

    Args:
        traces: of one rank, or one each of several ranks. A trace that does not know its rank counts by its place.
        subtract_peer_wait: let a collective begin when its last rank launched it. Needs the traces of all ranks, and
            clocks that agree (one host, or well synchronised ones).
        count_copies: whether copies and fills of GPU memory hide communication.
        layers: the layer of each collective of one iteration in launch order, None for a collective outside of layers;
            for code that names no layers. A trace may hold several iterations.

    Raises:
        NoCollectivesError: no trace has a collective.
        RanksMissingError: `subtract_peer_wait` without the traces of all ranks, or with traces that don't distinguish
            the collectives of several process groups.
        TraceError: two traces of one rank, or of CPU and GPU together; `layers` does not fit the trace.
    """
    by_rank = _by_rank([traces] if isinstance(traces, Trace) else traces)
    if not any(trace.collectives for trace in by_rank.values()):
        raise NoCollectivesError(
            f"there is no collective in {', '.join(trace.source for trace in by_rank.values())}",
            way_out="profile a run that communicates; on GPU with ProfilerActivity.CUDA (nsys profile --trace=cuda), "
            "so that kernels have events",
        )
    if layers is not None:
        by_rank = {rank: _with_layers(trace, layers) for rank, trace in by_rank.items()}
    peers = match(by_rank)
    if subtract_peer_wait and peers.missing:
        raise RanksMissingError(
            f"waiting for peers can't be subtracted: {peers.missing}",
            way_out="give the traces of all ranks, or leave the wait in",
        )
    origin = min(trace.span[0] for trace in by_rank.values() if trace.span is not None)
    reports = [
        _rank(rank, trace, peers, origin, subtract_peer_wait=subtract_peer_wait, count_copies=count_copies)
        for rank, trace in by_rank.items()
    ]
    sizes = [trace.world_size for trace in by_rank.values() if trace.world_size is not None]
    return OverlapReport(
        ranks=tuple(reports),
        device=next(iter(by_rank.values())).device,
        world_size=max(sizes, default=None),
        peer_wait_subtracted=subtract_peer_wait,
        notes=tuple(_notes(by_rank, peers)),
        estimates=estimates(list(by_rank.values())),
        traces=tuple(by_rank.values()),
    )


def _by_rank(traces: Sequence[Trace]) -> dict[int, Trace]:
    if not traces:
        raise TraceError("there is no trace", way_out="give at least one")
    by_rank: dict[int, Trace] = {}
    for place, trace in enumerate(traces):
        rank = place if trace.rank is None else trace.rank
        if rank in by_rank:
            raise TraceError(
                f"{by_rank[rank].source} and {trace.source} are both of rank {rank}",
                way_out="give the traces of one run, one for each rank; read_trace(..., rank=) sets the rank of one "
                "that has none",
            )
        by_rank[rank] = trace
    # a rank without collectives has no kernels in a trace of the host alone: it decides nothing
    if len({trace.device for trace in traces if trace.collectives}) > 1:
        raise TraceError("traces of CPU and of GPU collectives are given together", way_out="report on each alone")
    return dict(sorted(by_rank.items()))


def _with_layers(trace: Trace, layers: Sequence[int | None]) -> Trace:
    count = len(trace.collectives)
    if not layers or count % len(layers):
        raise TraceError(
            f"{trace.source} has {count} collectives, which is not a whole number of iterations of {len(layers)}",
            way_out="give `layers` one entry for each collective of an iteration, and profile whole iterations",
        )
    order = sorted(range(count), key=lambda i: trace.collectives[i].order)
    layer = {index: layers[place % len(layers)] for place, index in enumerate(order)}
    return replace(trace, collectives=tuple(replace(c, layer=layer[i]) for i, c in enumerate(trace.collectives)))


def _rank(
    rank: int, trace: Trace, peers: PeerMatch, origin: int, *, subtract_peer_wait: bool, count_copies: bool
) -> RankReport:
    compute = trace.compute(copies=count_copies)
    joined = peers.joined.get(rank) or [None] * len(trace.collectives)
    peer_waits = [
        None if last is None else max(0, min(last, one.end) - one.start)
        for one, last in zip(trace.collectives, joined, strict=True)
    ]
    spans = []
    for one, wait in zip(trace.collectives, peer_waits, strict=True):
        start = one.start + (wait or 0) if subtract_peer_wait else one.start
        spans.append((start, one.end))
    under = _Hiders(trace.lanes(copies=count_copies))
    coverage = Coverage(compute)
    communication = union(spans)
    exposed = difference(communication, compute)
    kinds: dict[str, list[int]] = defaultdict(list)
    layers: dict[int | None, list[int]] = defaultdict(list)
    for index, one in enumerate(trace.collectives):
        kinds[one.kind].append(index)
        layers[one.layer].append(index)
    if not layers.keys() - {None}:
        layers.clear()
    layers_in_order = sorted(layers, key=lambda layer: (layer is None, layer or 0))

    def part(name: str, indices: list[int]) -> PartReport:
        stretch = union(spans[index] for index in indices)
        return PartReport(
            name=name,
            count=len(indices),
            communication_ns=total(stretch),
            exposed_ns=total(stretch) - sum(coverage.within(*span) for span in stretch),
            hidden_by=under(stretch),
        )

    return RankReport(
        rank=rank,
        communication_ns=total(communication),
        exposed_ns=total(exposed),
        compute_ns=total(compute),
        waiting_ns=total(intersection(exposed, trace.waits)) if trace.device is CollectiveDevice.CPU else None,
        peer_wait_ns=None if None in peer_waits or not peer_waits else _time_all_wait(trace.collectives, peer_waits),
        hidden_by=under(communication),
        kinds=tuple(part(name, indices) for name, indices in kinds.items()),
        layers=tuple(part("?" if layer is None else str(layer), layers[layer]) for layer in layers_in_order),
        collectives=tuple(
            CollectiveReport(
                index=index,
                kind=one.kind,
                group=one.group,
                layer=one.layer,
                start_ns=span[0] - origin,
                communication_ns=span[1] - span[0],
                exposed_ns=span[1] - span[0] - coverage.within(*span),
                peer_wait_ns=peer_waits[index],
                hidden_by=under([span]),
            )
            for index, (one, span) in enumerate(zip(trace.collectives, spans, strict=True))
        ),
    )


def _time_all_wait(collectives: Sequence[Collective], waits: Sequence[int | None]) -> int:
    """Return the time during which collectives are in flight, and all of them wait for a rank."""
    waiting = union((one.start, one.start + (wait or 0)) for one, wait in zip(collectives, waits, strict=True))
    moving = union((one.start + (wait or 0), one.end) for one, wait in zip(collectives, waits, strict=True))
    return total(difference(waiting, moving))


class _Hiders:
    """The kernels and operators of a rank, for questions about the ones that ran during a stretch."""

    def __init__(self, lanes: Iterable[Sequence[Segment]]) -> None:
        self._lanes = [(lane, [end for _, end, _ in lane]) for lane in lanes]

    def __call__(self, stretch: Sequence[Span]) -> tuple[Hider, ...]:
        """Return the names that ran during the union `stretch`, longest first, then alphabetically."""
        times: Counter[str] = Counter()
        lengthy = [(start, end) for start, end in stretch if start < end]
        for lane, ends in self._lanes:
            for start, end in lengthy:
                for index in range(bisect_right(ends, start), len(lane)):
                    if lane[index][0] >= end:
                        break
                    times[lane[index][2]] += min(end, lane[index][1]) - max(start, lane[index][0])
        return tuple(Hider(name, time) for name, time in sorted(times.items(), key=lambda item: (-item[1], item[0])))


def _notes(by_rank: Mapping[int, Trace], peers: PeerMatch) -> list[str]:
    notes: dict[str, list[int]] = defaultdict(list)
    for rank, trace in by_rank.items():
        for note in trace.notes:
            notes[note].append(rank)
        if not trace.collectives:
            notes["no collective is in the trace of this rank."].append(rank)
    found = [
        note if len(ranks) == len(by_rank) else f"rank {', '.join(map(str, ranks))}: {note}"
        for note, ranks in notes.items()
    ]
    return found + list(peers.notes)
