# SPDX-License-Identifier: Apache-2.0
"""From which task to which each buffer of a program lives, in arrays: an order is judged without a loop over buffers.

In:    the tasks and buffers of a program; the places of its tasks in an order.
Out:   for each buffer, the places of the first task that makes it and of the last one that uses it.
Never: counts bytes (see `memory`).

The tasks of all buffers stand one after another in one array, and an order is looked up in it at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from farskip_compile.passes.schedule.program import Buffer, Task

Places = NDArray[np.int64]
INPUT, NOBODY = -2, -1
"""In place of a task: what makes an input, whose place is the first one; and a last user that isn't there."""


class Lifetimes:
    """Of the buffers of one program."""

    def __init__(self, tasks: Sequence[Task], buffers: Sequence[Buffer]) -> None:
        makers = [buffer.maker if buffer.maker >= 0 else INPUT for buffer in buffers]
        self.sizes = np.array([buffer.size for buffer in buffers], dtype=np.int64)
        self.freed = np.array([not buffer.kept for buffer in buffers], dtype=bool)
        self.joins = np.array([task.joins for task in tasks], dtype=bool)
        self.over = [(number, buffer.over) for number, buffer in enumerate(buffers) if buffer.over]
        """Buffers that may be written over others, and these."""
        pairs = list(zip(makers, buffers, strict=True))
        self._begins = _Groups([(maker, *buffer.parts) for maker, buffer in pairs])
        self._ends = _Groups([(maker, *buffer.users, *buffer.parts) for maker, buffer in pairs])
        self._users = _Groups([(NOBODY, *buffer.users) for buffer in buffers])

    def places(self, order: Sequence[int]) -> Places:
        """The place of each task in `order`."""
        places = np.empty(len(order) + 2, dtype=np.int64)
        places[np.asarray(order, dtype=np.int64)] = np.arange(len(order))
        places[INPUT], places[NOBODY] = 0, -1
        return places

    def first(self, places: Places) -> Places:
        """Of each buffer: the place of the first task that makes it, or a part of it."""
        return self._begins.least(places)

    def last(self, places: Places) -> Places:
        """That of the last task that makes or uses it."""
        return self._ends.most(places)

    def last_user(self, places: Places) -> Places:
        """That of the last task that uses it; -1 if none does."""
        return self._users.most(places)

    def ends_of_functions(self, order: Sequence[int]) -> Places:
        """For each place of `order`, that of the last task which joins the one there: its own if none does."""
        joins = self.joins[np.asarray(order, dtype=np.int64)]
        goes_on = np.append(joins[:-1] & joins[1:], False)[: len(joins)]
        ends = np.where(goes_on, len(joins), np.arange(len(joins)))
        found: Places = np.minimum.accumulate(ends[::-1])[::-1]
        return found


class _Groups:
    """Groups of tasks, none of them empty, one after another."""

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        self.tasks = np.array([task for group in groups for task in group], dtype=np.int64)
        self.starts = np.cumsum([0, *map(len, groups)], dtype=np.int64)[:-1]

    def least(self, places: Places) -> Places:
        found: Places = np.minimum.reduceat(places[self.tasks], self.starts)
        return found

    def most(self, places: Places) -> Places:
        found: Places = np.maximum.reduceat(places[self.tasks], self.starts)
        return found
