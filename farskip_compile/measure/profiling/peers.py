# SPDX-License-Identifier: Apache-2.0
"""The wait of each collective for the last rank to join.

In:    the traces of several ranks.
Out:   for each collective the moment at which its last rank launched it, if that can be known; or the reason why not.
Never: matches collectives that may not belong together.

The event of a collective on one rank lasts from that rank's start to its end, and includes the wait for ranks that
come later (rank skew). If every rank needs data from every other, no rank ends before the last has begun, so that the
time until then is not due to the network. It is an upper bound of the wait: a ring has data to send before the last
rank is there. Broadcasts and other kinds that one rank may finish early are left alone.

The n-th collective of a kind and process group on one rank is the n-th on every other rank. This needs all ranks of the
group, equal counts on all, and a known group: traces of a CPU name no groups, so all groups must have the same ranks. A
kernel without a group is left alone if there are several groups; the others are matched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from farskip_compile.measure.profiling.data import Collective, Trace
from farskip_compile.measure.profiling.events import LOOSE_KINDS
from farskip_compile.text_utils import amount

TOLERANCE_NS = 50_000
"""A collective that ends this long before another rank begins it is a sign of wrong clocks or matching."""

MOST_NAMED = 16
"""Ranks that a message names."""

_Key = tuple[str, str | None, tuple[int, ...]]


@dataclass(frozen=True)
class PeerMatch:
    """The outcome of the matching."""

    joined: Mapping[int, Sequence[int | None]]
    """The start on the last rank, by rank and collective: None if not known; empty if none could be matched."""
    missing: str
    """The reason why nothing could be matched, or the empty string."""
    notes: tuple[str, ...] = ()


def match(traces: Mapping[int, Trace]) -> PeerMatch:
    """Return the match of the collectives of `traces`, which are keyed by rank."""
    if reason := _unsound(traces):
        return PeerMatch({}, reason)
    sequences: dict[_Key, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    several = _several_groups(traces)
    nameless = 0
    for rank, trace in traces.items():
        for index, one in sorted(enumerate(trace.collectives), key=lambda pair: pair[1].order):
            if several and one.group is None and _needs_all_ranks(one):
                nameless += 1
            elif _needs_all_ranks(one):
                sequences[one.kind, one.group, one.ranks or tuple(traces)][rank].append(index)
    joined: dict[int, list[int | None]] = {rank: [None] * len(trace.collectives) for rank, trace in traces.items()}
    unmatched = early = worst = 0
    for (_, _, ranks), by_rank in sequences.items():
        if set(ranks) != set(by_rank) or len({len(indices) for indices in by_rank.values()}) != 1:
            unmatched += sum(map(len, by_rank.values()))
            continue
        for together in zip(*by_rank.values(), strict=True):
            members = list(zip(by_rank, together, strict=True))
            last = max(traces[rank].collectives[index].start for rank, index in members)
            for rank, index in members:
                joined[rank][index] = last
                lead = last - traces[rank].collectives[index].end
                if lead > TOLERANCE_NS:
                    early, worst = early + 1, max(worst, lead)
    return PeerMatch(joined, "", tuple(_notes(traces, unmatched, nameless, early, worst)))


def _needs_all_ranks(one: Collective) -> bool:
    """Return whether every rank needs the last one before it can finish the collective."""
    return not one.loose and one.kind not in LOOSE_KINDS


def _several_groups(traces: Mapping[int, Trace]) -> bool:
    return len({ranks for trace in traces.values() for ranks in trace.groups or ()}) > 1


def _unsound(traces: Mapping[int, Trace]) -> str:
    sizes = {trace.world_size for trace in traces.values() if trace.world_size is not None}
    absent = (rank for rank in range(max(sizes, default=0)) if rank not in traces)
    if missing := list(islice(absent, MOST_NAMED + 1)):
        more = ", ..." if len(missing) > MOST_NAMED else ""
        return f"there is no trace of rank {', '.join(map(str, missing[:MOST_NAMED]))}{more}"
    if len(traces) < 2:
        return "there is only one trace"
    if sizes and sizes != {len(traces)}:
        return f"the traces are of runs with {' and '.join(map(str, sorted(sizes)))} ranks"
    if any(trace.groups is None for trace in traces.values()):
        return "the profiles do not say which process groups there are"
    asked = [one for trace in traces.values() for one in trace.collectives if _needs_all_ranks(one)]
    if asked and all(one.group is None for one in asked) and _several_groups(traces):
        return "there are several process groups, and the traces do not say which collective belongs to which"
    return ""


def _notes(traces: Mapping[int, Trace], unmatched: int, nameless: int, early: int, worst: int) -> list[str]:
    notes = []
    if nameless:
        notes.append(
            f"{amount(nameless, 'collective')} of unknown process group, of which there are several: waiting for peers "
            "not known."
        )
    if unmatched:
        notes.append(
            f"{amount(unmatched, 'collective')} without a counterpart on every rank: waiting for peers not known."
        )
    if early:
        notes.append(
            f"{amount(early, 'collective')} ended before another rank had begun, by up to {worst / 1e6:.3g} ms: the "
            "clocks of the ranks differ, and so waiting for peers is not measured well."
        )
    hosts = sorted({trace.host for trace in traces.values()})
    if len(hosts) > 1:
        notes.append(f"The clocks of {len(hosts)} hosts are compared as they are.")
    return notes
