"""What goes from layer to layer of an overlapped FarSkip model, and the order of backward within a layer.

In:    nothing.
Out:   `Streams`: n, which is there, and x, for which a routed output on its way may have to arrive.
Never: waits unless x is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import nn

from farskip_compile.models.decoder import DecoderLayer


@dataclass(frozen=True)
class Streams:
    """The two streams in front of a layer."""

    n: torch.Tensor
    """Without the routed output of the layer before: what the attention reads, [B, T, D]."""
    late: Callable[[], torch.Tensor] | None = None
    """Waits for that output and gives x, [B, T, D]; to be called once. None: nothing is on its way, x is n."""

    def x(self) -> torch.Tensor:
        """Everything summed: what the feed-forward reads."""
        return self.n if self.late is None else self.late()


class BackwardOrder(IntEnum):
    """Sequence numbers of nodes that must run after all that is independent of them; higher ones come first.

    Among themselves: while the transposed combine is in flight, the shared experts and the attention proper run by
    their own, large numbers, and then COMBINE waits for it. The experts run, and the transposed dispatch is launched;
    under it run PROJECTIONS and ROUTING, and then DISPATCH waits for it. x, and with it the layer before, needs no
    number: it is not ready before that.
    """

    DISPATCH = 0
    """Input of the dispatch."""
    ROUTING = 1
    """Weights of the chosen experts."""
    PROJECTIONS = 2
    """Queries, keys and values."""
    COMBINE = 3
    """Input of the combine."""


def feed_forward_norm(layer: DecoderLayer) -> nn.Module:
    """The norm in front of the feed-forward; a parallel block has one norm for both readers."""
    return layer.attention_norm if layer.feed_forward_norm is None else layer.feed_forward_norm


def summed(parts: list[torch.Tensor]) -> torch.Tensor:
    """((first + second) + third), the order in which the plain model adds."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
