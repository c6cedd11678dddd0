"""The best weights so far, and when to give up (paper section 5.1: late collapse is known).

Contract: `Best` is told of each evaluation in order; it keeps a copy of the trained parameters of the best one, on the
CPU, and says when `patience` evaluations have passed without a better one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


class Best:
    """Lower is better.

    Args:
        model: whose parameters are kept.
        patience: evaluations without improvement after which to stop; None: never.
        least: part by which a score must fall to be better.
    """

    def __init__(self, model: nn.Module, patience: int | None, least: float) -> None:
        self.model, self.patience, self.least = model, patience, least
        self.score, self.step, self.waited = math.inf, 0, 0
        self.weights: dict[str, torch.Tensor] = {}

    def tell(self, step: int, score: float) -> bool:
        """An evaluation; returns whether to stop. A score that is no number is never better."""
        if score < self.score - self.least * abs(self.score if math.isfinite(self.score) else 0.0):
            self.score, self.step, self.waited = score, step, 0
            self.weights = {name: value.detach().cpu().clone() for name, value in self._trained().items()}
        else:
            self.waited += 1
        return self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether the patience is at its end."""
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
        """What `state` gave, and the weights."""
        self.score, self.step, self.waited, self.weights = state["score"], state["step"], state["waited"], weights

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}
