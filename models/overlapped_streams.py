"""The streams between the layers of an overlapped FarSkip model, and the order of backward within a layer.

Out:   `Streams`: n, which is available, and x, which may have to wait for a routed output in flight.
Never: waits unless x is requested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch


@dataclass(frozen=True)
class Streams:
    """The two input streams of a layer."""

    n: torch.Tensor
    """Without the routed output of the previous layer: what the attention reads, [B, T, D]."""
    late: Callable[[], torch.Tensor] | None = None
    """Waits for that output and returns x, [B, T, D]; to be called once. None: nothing is in flight, x is n."""

    def x(self) -> torch.Tensor:
        """Everything summed: what the feed-forward reads."""
        return self.n if self.late is None else self.late()


class BackwardOrder(IntEnum):
    """Sequence numbers of nodes that must run after everything independent of them; higher ones come first.

    While the transposed combine is in flight, the shared experts and the attention proper run by their own, large
    numbers, and then COMBINE waits for it. The experts run, and the transposed dispatch is launched; under it run
    PROJECTIONS and ROUTING, and then DISPATCH waits for it. x, and with it the previous layer, needs no number: it is
    not ready earlier.
    """

    DISPATCH = 0
    """Input of the dispatch."""
    ROUTING = 1
    """Weights of the chosen experts."""
    PROJECTIONS = 2
    """Queries, keys and values."""
    COMBINE = 3
    """Input of the combine."""
