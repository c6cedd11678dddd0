"""How far the student is from its teacher on batches that it is not trained on.

In:    the student as a function of a batch, held-out batches, and what the teacher said of them.
Out:   `HeldOut`: KL, next-token loss, agreement, each a mean over targets of all ranks.
Never: a gradient, a change of mode that stays.

What the teacher says of the held-out batches is asked for once and kept in memory: [B, T, V] numbers for each batch, or
2 k for each position from a cache. Keep the held-out set small, or cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from farskip_compile.distill.batches import Batch
from farskip_compile.distill.loss import TopLogits, agreement, forward_kl, next_token_loss
from farskip_compile.distill.ranks import Ranks
from farskip_compile.distill.teacher import Teacher, evaluating
from farskip_compile.errors import ConfigError


@dataclass(frozen=True)
class HeldOut:
    """Means over held-out targets, in nats."""

    loss: float
    """Cross-entropy with the text."""
    kl: float | None
    """KL(teacher || student); None without a teacher."""
    top1: float | None
    """Part of the targets at which both find the same token most probable."""

    def to_json(self) -> dict[str, float | None]:
        """For `json.dumps`."""
        return {f"held_out_{name}": value for name, value in asdict(self).items()}


class Evaluation:
    """Held-out batches with the teacher's word on them.

    Args:
        batches: on the model's device.
        teacher: None: only the loss is computed.
        ranks: of the run; each has held-out batches of its own, or the same.

    Raises:
        ConfigError: the ranks have different numbers of batches, so that an exchange of tokens would hang.
    """

    def __init__(self, batches: Sequence[Batch], teacher: Teacher | None, ranks: Ranks) -> None:
        self.batches, self.ranks = batches, ranks
        total, squares = ranks.sum(len(batches), len(batches) ** 2)
        if squares * ranks.size != total**2:
            raise ConfigError(
                f"this rank has {len(batches)} held-out batches, the {ranks.size} ranks together {total:.0f}",
                way_out="equally many on each rank",
            )
        self.said: list[torch.Tensor | TopLogits | None] = [
            teacher(batch) if teacher is not None else None for batch in batches
        ]

    @torch.no_grad()
    def __call__(self, student: Callable[[Batch], torch.Tensor], model: nn.Module) -> HeldOut:
        """Evaluate `student`, which runs `model`."""
        loss = kl = same = 0.0
        with evaluating(model):
            for batch, said in zip(self.batches, self.said, strict=True):
                logits = student(batch)
                loss += next_token_loss(logits, batch.targets).item()
                if said is not None:
                    kl += forward_kl(logits, said, batch.targets).item()
                    same += agreement(logits, said, batch.targets).item()
        tokens = sum(batch.tokens for batch in self.batches)
        loss, kl, same, count = self.ranks.sum(loss, kl, same, tokens)
        judged = bool(self.said) and self.said[0] is not None
        return HeldOut(loss / count, kl / count if judged else None, same / count if judged else None)
