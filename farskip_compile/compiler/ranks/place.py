# SPDX-License-Identifier: Apache-2.0
"""The place of a rank on one process group: an epoch of a frame (`ranks.compiles`), and an order.

Contract: a place writes this rank's notes into the store of the group, and judges the notes of other ranks. It waits
for no rank, and raises nothing but `StoreLost`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from farskip_compile._compat.distributed import StoreClient
from farskip_compile.compiler.ranks.compiles import Epoch, Frame, next_number

_waits = itertools.count(1)


@dataclass(frozen=True)
class RankPlace:
    """The place of this rank on one process group."""

    client: StoreClient
    order: str
    """JSON text: the phase, the launches, the options that the ranks must have in common, and the sizes."""
    frame: Frame
    epoch: Epoch
    previous: Epoch | None
    """The epoch before, if a new one begins here."""
    new: frozenset[str]
    """Keys of this place that this rank has not noted before."""

    @property
    def name(self) -> str:
        """The name of the place in the store."""
        return name_of(self.epoch.number, self.order)

    @property
    def me(self) -> int:
        """The global number of this rank."""
        return self.client.ranks[self.client.rank]

    def enter(self) -> None:
        """Note that this rank has reached the place, and waits there."""
        for key in self.new:
            self.client.set(key, "1")
        self._write_note(next(_waits))

    def leave(self, *, still_waiting: bool = False, failed: bool = False) -> None:
        """Note that this rank has gone on, unless others are to see it waiting; take `failed` places back."""
        if not still_waiting:
            self._write_note(0)
        if failed:
            for key in self.new:
                self.client.remove(key)

    def _write_note(self, wait: int) -> None:
        note = {
            "wait": wait,
            "epoch": self.epoch.number,
            "left": self._previous_number(),
            "run": self.frame.runs,
            "order": self.order,
        }
        self.client.set(at(self.client.rank), json.dumps(note))

    def _previous_number(self) -> int:
        return self.previous.number if self.previous is not None else 0

    def excludes(self, note: str) -> bool:
        """Return whether a rank for which this one waits will not come, by its `note`.

        That rank waits where this one has never been, or runs the epoch that this rank has left, at the same run of the
        frame or a later one.
        """
        if not note:
            return False
        other = json.loads(note)
        if self._previous_number() == other["epoch"] and other["run"] >= self.frame.runs:
            return True
        name = name_of(other["epoch"], other["order"])
        return bool(other["wait"]) and not have_reached(self.client, [self.client.rank], name)

    def is_left_by(self, note: str) -> bool:
        """Return whether another rank, by its `note`, waits in the epoch after this rank's.

        Only waits at the same run of the frame or an earlier one count.
        """
        other = json.loads(note) if note else {"wait": 0}
        return bool(other["wait"]) and other["left"] == self.epoch.number and other["run"] <= self.frame.runs


ANY = "any"
"""The mark in the name of a place whose sizes are not fixed."""


def place_of(client: StoreClient, order: str, frame: Frame) -> RankPlace:
    """Return the place at which this rank is about to run `order`, in a new epoch of `frame` if its options changed."""
    known = frame.epochs.get(client.group)
    is_new = known is None or known.options != frame.options
    epoch = Epoch(next_number(client.group), frame.options) if known is None or is_new else known
    name = name_of(epoch.number, order)
    keys = {got(name.rpartition("/")[0], client.rank), got(name, client.rank)}
    new = frozenset(key for key in keys if not client.has(key))
    return RankPlace(client, order, frame, epoch, known if is_new else None, new)


def name_of(epoch: int, order: str) -> str:
    """Return the name of a place in the store: `EPOCH/ORDER/SIZES`."""
    *phase_launches_options, sizes = json.loads(order)
    return f"{epoch}/{_hash(phase_launches_options)}/{_hash(sizes) if sizes is not None else ANY}"


def _hash(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def have_reached(client: StoreClient, ranks: Sequence[int], name: str) -> bool:
    """Return whether all of `ranks` have been at the place `name`, or at one that may be the same."""
    base, _, sizes = name.rpartition("/")
    if client.has(*(got(base if sizes == ANY else name, rank) for rank in ranks)):
        return True
    if sizes == ANY:
        return False
    return all(client.has(got(name, rank)) or client.has(got(f"{base}/{ANY}", rank)) for rank in ranks)


def got(name: str, rank: int) -> str:
    """Return the key that exists once `rank` has been at the place `name`."""
    return f"farskip/got/{name}/{rank}"


def at(rank: int) -> str:
    """Return the key of the note of `rank` about its place."""
    return f"farskip/at/{rank}"
