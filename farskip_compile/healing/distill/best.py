# SPDX-License-Identifier: Apache-2.0
"""The best weights of a run, and when to give it up (arXiv 2511.11505, section 5.1: late collapse is known).

Contract: keeps copies of trained parameters on the CPU, of the evaluation with the least score, for `restore`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


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
