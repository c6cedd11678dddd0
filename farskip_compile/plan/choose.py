"""Which rows to rewire: as much communication hidden for as little damage as can be.

In:    the damage of each row alone, and a function that estimates what a set of rows leaves exposed.
Out:   `Front`: of all sets that were looked at, those that no other one beats in both; from none to all.
Never: assumes that rows add up in what they hide. They do not: where the MoE reads past its own layer's attention, most
       of the next attention's gain is had already, and more can be had where both are. Damage is taken as additive,
       which holds while it is small.

Algorithm: from no row, add the one that hides most for its damage; from all rows, drop the one that hides least for its
damage. What a row adds mostly shrinks while rows are added, and grows while they are dropped, so rows are kept in a
heap by what they made of an earlier set, and only the first one is estimated anew (lazy greedy): for n rows some 2 n
estimates each way, not n^2 / 2.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from farskip_compile.plan.exposure import Exposure

SMALLEST = 1e-9
"""Damage, in nats, that a row without any is taken to do: a share of nothing is no order."""

Rows = frozenset[str]


@dataclass(frozen=True)
class Point:
    """One set of rows."""

    rows: tuple[str, ...]
    """In the order of the model."""
    damage: float
    """Sum of their damages, nats per token."""
    exposure: Exposure


@dataclass(frozen=True)
class Front:
    """Sets of rows by damage; each hides more than all before it."""

    points: tuple[Point, ...]
    whole: Point
    """All rows. A part of them may hide as much."""

    def freed(self, point: Point) -> float:
        """Part of what all rows free that this set frees; 1 if there is nothing to free."""
        nothing = self.points[0].exposure.exposed
        most = nothing - self.whole.exposure.exposed
        return (nothing - point.exposure.exposed) / most if most > 0 else 1.0

    def for_share(self, share: float) -> Point:
        """The set with the least damage that frees `share` of what all rows free."""
        return next((point for point in self.points if self.freed(point) >= share), self.whole)

    def for_budget(self, damage: float) -> Point:
        """The set that frees most with at most this damage."""
        return [point for point in self.points if point.damage <= damage or not point.rows][-1]


def choose(damage: Mapping[str, float], estimate: Callable[[tuple[str, ...]], Exposure]) -> Front:
    """The front for rows with these damages.

    Args:
        damage: of each row alone, nats per token; in the order of the model.
        estimate: of a set of rows.
    """
    known: dict[Rows, Exposure] = {}

    def exposed(rows: Rows) -> float:
        if rows not in known:
            known[rows] = estimate(tuple(row for row in damage if row in rows))
        return known[rows].exposed

    price = {row: max(one, SMALLEST) for row, one in damage.items()}
    _walk(frozenset(), lambda rows, row: rows | {row}, price, exposed)
    _walk(frozenset(damage), lambda rows, row: rows - {row}, price, exposed)
    points = [
        Point(tuple(row for row in damage if row in rows), sum(damage[row] for row in damage if row in rows), one)
        for rows, one in known.items()
    ]
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (one.damage, one.exposure.exposed, len(one.rows))):
        if not front or point.exposure.exposed < front[-1].exposure.exposed:
            front.append(point)
    return Front(tuple(front), next(point for point in points if len(point.rows) == len(damage)))


def _walk(
    start: Rows,
    step: Callable[[Rows, str], Rows],
    price: Mapping[str, float],
    exposed: Callable[[Rows], float],
) -> None:
    """Take all steps from `start`, those first that make what is exposed smallest for their price."""
    order = {row: place for place, row in enumerate(price)}
    rows = start
    heap = [(-float("inf"), order[row], row, -1) for row in price]  # what it makes of which set, by number of steps
    taken = 0
    while heap:
        _, _, row, seen = heapq.heappop(heap)
        if seen == taken:
            rows, taken = step(rows, row), taken + 1
            continue
        more = (exposed(step(rows, row)) - exposed(rows)) / price[row]
        heapq.heappush(heap, (more, order[row], row, taken))
