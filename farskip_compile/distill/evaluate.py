"""How far the student is from its teacher on batches that it is not trained on, and which weights were best.

In:    the student as a function of a batch, held-out batches, and the teacher's logits for them.
Out:   `HeldOut`: KL, next-token loss, agreement, each a mean over targets of all ranks; `Best`: the weights of the best
       evaluation, and when to give up (paper section 5.1: late collapse is known).
Never: a gradient, a change of mode that stays.

The teacher is asked about the held-out batches once, and its answers are kept in memory: [B, T, V] numbers for each
batch, or 2 k for each position from a cache. Keep the held-out set small, or cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from farskip_compile.distill.batches import Batch
from farskip_compile.distill.losses import agreement, forward_kl, next_token_loss
from farskip_compile.distill.ranks import Ranks
from farskip_compile.distill.teacher import Teacher, TopLogits, evaluating
from farskip_compile.errors import ConfigError


@dataclass(frozen=True)
class HeldOut:
    """Means over held-out targets, in nats."""

    loss: float
    """Cross-entropy with the text."""
    kl: float | None
    """KL(teacher || student); None without a teacher."""
    top1: float | None
    """Fraction of the targets at which both find the same token most probable."""

    def to_json(self) -> dict[str, float | None]:
        """For `json.dumps`."""
        return {f"held_out_{name}": value for name, value in asdict(self).items()}


class Evaluation:
    """Held-out batches, each rank's own or the same, with the teacher's logits for them; no teacher: only the loss.

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
        self.teacher_logits: list[torch.Tensor | TopLogits | None] = [
            teacher(batch) if teacher is not None else None for batch in batches
        ]

    @torch.no_grad()
    def __call__(self, student: Callable[[Batch], torch.Tensor], model: nn.Module) -> HeldOut:
        """Evaluate `student`, which runs `model`."""
        loss = kl = same = 0.0
        with evaluating(model):
            for batch, known in zip(self.batches, self.teacher_logits, strict=True):
                logits = student(batch)
                loss += next_token_loss(logits, batch.targets).item()
                if known is not None:
                    kl += forward_kl(logits, known, batch.targets).item()
                    same += agreement(logits, known, batch.targets).item()
        tokens = sum(batch.tokens for batch in self.batches)
        loss, kl, same, count = self.ranks.sum(loss, kl, same, tokens)
        judged = bool(self.teacher_logits) and self.teacher_logits[0] is not None
        return HeldOut(loss / count, kl / count if judged else None, same / count if judged else None)


class Best:
    """Keeps a copy, on the CPU, of the trained parameters of the best evaluation; lower scores are better.

    Args:
        model: whose parameters are kept.
        patience: evaluations without improvement after which to stop; None: never.
        least: fraction by which a score must fall to be better.
    """

    def __init__(self, model: nn.Module, patience: int | None, least: float) -> None:
        self.model, self.patience, self.least = model, patience, least
        self.score, self.step, self.waited = math.inf, 0, 0
        self.weights: dict[str, torch.Tensor] = {}

    def record(self, step: int, score: float) -> bool:
        """Record an evaluation; returns whether to stop. A score of NaN is never better."""
        if score < self.score - self.least * abs(self.score if math.isfinite(self.score) else 0.0):
            self.score, self.step, self.waited = score, step, 0
            self.weights = {name: value.detach().cpu().clone() for name, value in self._trained().items()}
        else:
            self.waited += 1
        return self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.waited >= self.patience

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best weights into the model."""
        for name, value in self._trained().items():
            if name in self.weights:
                value.copy_(self.weights[name])

    def state(self) -> dict[str, Any]:
        """All but the weights."""
        return {"score": self.score, "step": self.step, "waited": self.waited}

    def load(self, state: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        """Restore what `state` gave, and the weights."""
        self.score, self.step, self.waited, self.weights = state["score"], state["step"], state["waited"], weights

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}
