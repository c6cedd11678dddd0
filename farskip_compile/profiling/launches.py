"""Which launch a collective came from, and so which layer.

In:    collectives as the trace shows them, the operators that launched them, and `record_function` ranges that name a
       layer.
Out:   the same collectives with launch, kind and layer, where these can be known.
Never: guesses. A kind for which the trace shows more launches than collectives, or a collective before its launch,
       is left as it is.

On GPU a kernel carries the correlation id of the runtime call that launched it. On CPU nothing ties a gloo work to its
operator but the order: gloo takes works from one queue, so that the n-th `gloo:all_to_all` to start is the n-th that
was launched.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from farskip_compile.profiling import events
from farskip_compile.profiling.data import Collective
from farskip_compile.profiling.lanes import Segment, in_order, innermost

Place = tuple[str, int]
"""Thread and moment of a launch."""


@dataclass(frozen=True, slots=True)
class Launch:
    """An operator of c10d that launched a collective."""

    kind: str
    work: str
    """What gloo calls the resulting work."""
    place: Place


class Layers:
    """The layer that a moment of a thread belongs to, by `record_function` ranges; the innermost range decides."""

    def __init__(self, ranges: Mapping[str, Sequence[Segment]]) -> None:
        self._starts: dict[str, list[int]] = {}
        self._stretches: dict[str, list[tuple[int, int | None]]] = {}
        for thread, unordered in ranges.items():
            ordered = in_order(unordered)
            found = list(innermost(ordered))
            self._starts[thread] = [start for start, _, _ in found]
            self._stretches[thread] = [(end, events.layer_of(ordered[index][2])) for _, end, index in found]

    def place(self, collective: Collective, place: Place) -> Collective:
        """`collective` with the moment of its launch, and the layer that is named there."""
        thread, moment = place
        index = bisect_right(self._starts.get(thread, ()), moment) - 1
        end, layer = self._stretches[thread][index] if index >= 0 else (moment, None)
        return replace(collective, launched=moment, layer=layer if moment < end else None)


def link_by_order(collectives: Sequence[Collective], launches: Sequence[Launch], layers: Layers) -> list[Collective]:
    """Collectives on CPU, in order of their starts, with their launches."""
    works: dict[str, list[int]] = defaultdict(list)
    for index, collective in enumerate(collectives):
        works[collective.kind].append(index)
    launched: dict[str, list[Launch]] = defaultdict(list)
    for launch in sorted(launches, key=lambda launch: launch.place[1]):
        launched[launch.work].append(launch)
    linked = list(collectives)
    for work, indices in works.items():
        pairs = list(zip(indices, launched[work], strict=False))
        late = any(collectives[index].start < launch.place[1] for index, launch in pairs)
        if len(launched[work]) != len(indices) or late:
            continue
        for index, launch in pairs:
            linked[index] = replace(layers.place(linked[index], launch.place), kind=launch.kind)
    return linked
