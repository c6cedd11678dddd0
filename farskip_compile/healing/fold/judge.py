# SPDX-License-Identifier: Apache-2.0
"""Held-out KL from the original, at any point of a fold.

In:    twins, held-out batches; the original's logits for them are asked for once, before anything is changed, and of
       each position the largest `TOP` are kept.
Out:   `Judge`: `kl` runs the rest of the rewired graph from where the fold stands, with the parameters as they are.
Never: keeps logits [tokens, vocabulary]; changes a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from farskip_compile.healing.causal.batches import Batch
from farskip_compile.healing.causal.losses import forward_kl
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.causal.teacher import TopLogits
from farskip_compile.healing.fold.tape import Tape
from farskip_compile.healing.fold.twins import ChannelTwins

TOP = 128
"""Logits of the original that are kept at each position; the rest of its probability is one more outcome."""


class Judge:
    """See the module."""

    def __init__(self, twins: ChannelTwins, batches: Sequence[Batch], ranks: TrainingRanks) -> None:
        self.twins, self.batches, self.ranks = twins, batches, ranks
        inputs = [twins.inputs(batch) for batch in batches]
        self._known: list[TopLogits] = []
        for batch, given in zip(batches, inputs, strict=True):
            logits = twins.logits(batch, Tape(twins.teacher, given).finish())
            top = TopLogits.of(logits, TOP)
            self._known.append(TopLogits(top.values.cpu(), top.indices.cpu()))
        self.tapes = [Tape(twins.student, given) for given in inputs]
        (self.tokens,) = map(int, ranks.sum(sum(batch.tokens for batch in batches)))

    @torch.no_grad()
    def kl(self) -> float:
        """Nats per token, of all ranks."""
        found = 0.0
        for batch, tape, known in zip(self.batches, self.tapes, self._known, strict=True):
            logits = self.twins.logits(batch, tape.fork().finish())
            here = TopLogits(known.values.to(logits.device), known.indices.to(logits.device))
            found += forward_kl(logits, here, batch.targets).item()
        (total,) = self.ranks.sum(found)
        return total / self.tokens
