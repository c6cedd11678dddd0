"""An order by keys that keeps what must come before what.

In:    a key for each of so many things, and what each of them needs.
Out:   all of them, each behind what it needs, else by key; things with equal keys in their own order.
Never: knows what the things are. O(n log n).
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from typing import Any


def order_by_key(keys: Sequence[Any], needs: Sequence[Collection[int]]) -> list[int]:
    """Indices of `keys` in that order; `needs` are indices, and there is no cycle."""
    missing = [len(one) for one in needs]
    followers: list[list[int]] = [[] for _ in needs]
    for index, one in enumerate(needs):
        for need in one:
            followers[need].append(index)
    ready = [(keys[index], index) for index, count in enumerate(missing) if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        index = heapq.heappop(ready)[1]
        order.append(index)
        for follower in followers[index]:
            missing[follower] -= 1
            if missing[follower] == 0:
                heapq.heappush(ready, (keys[follower], follower))
    return order
