"""Make an order hold less memory where it holds too much: a few tasks move, the rest stays.

In:    a `Program`, an order of its tasks that holds more than a limit somewhere, and the limit.
Out:   an order that holds less above the limit, all places together; one of them may hold more. It keeps every
       dependence and the order of launches and waits. The same one if nothing helps.
Never: moves a launch or a wait, which would cost overlap; asks what the new order costs in time.

The list scheduler builds an order from the front and can't know that a task for which there is just enough room now
will soon have none, once a collective is in flight.

Algorithm: where most is alive, three kinds of moves are tried: the task there goes where less is alive; what makes a
buffer that is used only later goes right in front of its first user; what is the last to use a buffer comes first. The
move that leaves least above the limit, in all places together, is made; of equal ones that of the shortest task. Moves
end when nothing is above the limit, or none helps, or after a number of them that falls with the size of the program:
each costs O(n).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from farskip_compile.passes.schedule.program import Program, Role, live_bytes, needs_of

MOVES = 16
"""At most."""

WORK = 10_000
"""Tasks of all moves together."""

BUFFERS = 8
"""Of those that are alive at the peak, so many are looked at, the largest first."""


def lower_peak(program: Program, order: Sequence[int], limit: int) -> tuple[int, ...]:
    """The order, with tasks moved so that `live_bytes` stays within `limit`, as far as that can be had."""
    needs = needs_of(program)
    followers: list[list[int]] = [[] for _ in needs]
    for index, one in enumerate(needs):
        for need in one:
            followers[need].append(index)
    best = list(order)
    above = _above(live := live_bytes(program, best), limit)
    for _ in range(min(MOVES, max(1, WORK // max(len(best), 1)))):
        if not above:
            break
        found: tuple[tuple[int, float, int], list[int]] | None = None
        for old, new in _moves(program, best, live, needs, followers):
            moved = best.copy()
            moved.insert(new, moved.pop(old))
            left = _above(live_bytes(program, moved), limit)
            merit = left, program.tasks[best[old]].seconds, abs(new - old)
            if left < above and (found is None or merit < found[0]):
                found = merit, moved
        if found is None:
            break
        (above, _, _), best = found
        live = live_bytes(program, best)
    return tuple(best)


def _above(live: Sequence[int], limit: int) -> int:
    return sum(one - limit for one in live if one > limit)


def _moves(
    program: Program,
    order: Sequence[int],
    live: Sequence[int],
    needs: Sequence[set[int]],
    followers: Sequence[Sequence[int]],
) -> Iterator[tuple[int, int]]:
    """Old and new place of one task, by move; the new one as if the task were not there any more."""
    position = {index: place for place, index in enumerate(order)}
    peak = max(range(len(live)), key=live.__getitem__)

    def first(index: int) -> int:
        return 1 + max((position[need] for need in needs[index]), default=-1)

    def last(index: int) -> int:
        return min((position[follower] for follower in followers[index]), default=len(order)) - 1

    here = order[peak]
    if program.tasks[here].role is Role.COMPUTE:
        for places in (range(first(here), peak), range(peak + 1, last(here) + 1)):
            if places:
                yield peak, min(places, key=live.__getitem__)
    alive = []
    for buffer in program.buffers:
        if buffer.size and not buffer.kept and buffer.maker >= 0 and position[buffer.maker] <= peak:
            freer = max((buffer.maker, *buffer.users), key=position.__getitem__)
            if position[freer] > peak:
                alive.append((buffer, freer))
    for buffer, freer in heapq.nlargest(BUFFERS, alive, key=lambda one: one[0].size):
        if buffer.maker != here and program.tasks[buffer.maker].role is Role.COMPUTE and last(buffer.maker) > peak:
            yield position[buffer.maker], last(buffer.maker)
        if program.tasks[freer].role is Role.COMPUTE and first(freer) <= peak:
            yield position[freer], peak
