# SPDX-License-Identifier: Apache-2.0
"""By how much the stream of the rewired model is short of the original's: a sum over the terms so far.

In:    the tables of both graphs, and tapes of both for each batch.
Out:   `Shortfall`: for each batch rows [tokens, H], to be added to what the next term should be, so that it makes good
       what earlier terms lack; `watched`: the nodes that the tapes must keep.
Never: counts a term that will still be changed: one with a site is settled once that is decided, any other once both
    tapes
       have passed it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import fx

from farskip_compile.healing.fold.tape import Tape
from farskip_compile.healing.fold.twins import ChannelTwins


class Shortfall:
    """See the module; `sites`: the rewired nodes of the terms that have one."""

    def __init__(self, twins: ChannelTwins, sites: Collection[fx.Node]) -> None:
        pairs = twins.terms()
        self._open = [pair for pair in pairs if pair[0] not in sites]
        self.watched = [node for node, _ in self._open], [original for _, original in pairs]
        self._rows: dict[int, torch.Tensor] = {}

    def of(self, batch: int, like: torch.Tensor) -> torch.Tensor | float:
        """Rows to add to those of `like`; 0 if nothing is known."""
        found = self._rows.get(batch)
        return found if found is not None and found.shape == like.shape else 0.0

    def settle(self, batch: int, now: torch.Tensor, original: torch.Tensor) -> None:
        """A term is what it will be."""
        missing = original.reshape(-1, original.shape[-1]) - now.reshape(-1, now.shape[-1])
        before = self._rows.get(batch)
        self._rows[batch] = missing if before is None or before.shape != missing.shape else before + missing

    def pass_by(self, rewired: Sequence[Tape], original: Sequence[Tape]) -> None:
        """Settle the terms without a site that all tapes have passed."""
        for node, there in list(self._open):
            if all(node in tape.seen for tape in rewired) and all(there in tape.seen for tape in original):
                for batch, (one, other) in enumerate(zip(rewired, original, strict=True)):
                    self.settle(batch, one.seen.pop(node), other.seen.pop(there))
                self._open.remove((node, there))
