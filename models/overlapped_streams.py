"""The streams between the layers of an overlapped FarSkip model, and the order of backward within a layer.

Out:   `Streams`: n, which is available, and x, which may have to wait for a routed output in flight.
Never: waits unless x is requested.
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


def feed_forward_norm(layer: DecoderLayer) -> nn.Module:
    """The norm before the feed-forward; a parallel block has one norm for both readers."""
    return layer.attention_norm if layer.feed_forward_norm is None else layer.feed_forward_norm


def summed(parts: list[torch.Tensor]) -> torch.Tensor:
    """((first + second) + third), the order in which the plain model adds."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
