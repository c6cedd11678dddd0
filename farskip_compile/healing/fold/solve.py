# SPDX-License-Identifier: Apache-2.0
"""The matrix of a fold: what a value was, from what it is.

In:    pairs of rows, [tokens, H] as the rewired model has them and as the original has them, in batches, on all ranks.
Out:   `NormalEquations`: their Gram matrices in float32 (float64 for such values), of those that are fitted and of
       those that the ridge is chosen by; `solve`: `M` [H, H] with `now @ M` nearest to `original`.
Never: holds rows; memory is six matrices [H, H].

M minimises |original - now M|^2 + ridge |M - 1|^2: a strong ridge leaves the value as it is. The ridge is the one of
`RIDGES`, in units of the mean of the Gram matrix's diagonal, with the least error on the rows that were not fitted.
Then all rows are fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

RIDGES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
CHOOSING = 4
"""Each fourth row is for the choice of the ridge."""

Sum = Callable[[torch.Tensor], None]
"""Adds up over all ranks, in place."""


class Grams:
    """Sums over rows: now' now, now' (original - now), |original - now|^2."""

    def __init__(self, size: int, like: torch.Tensor) -> None:
        kind = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.own = torch.zeros(size, size, dtype=kind, device=like.device)
        self.cross = torch.zeros_like(self.own)
        self.error = torch.zeros((), dtype=torch.float64, device=like.device)

    def add(self, now: torch.Tensor, original: torch.Tensor) -> None:
        """Rows [tokens, H]."""
        now = now.to(self.own.dtype)
        apart = original.to(self.own.dtype) - now
        self.own.addmm_(now.T, now)
        self.cross.addmm_(now.T, apart)
        self.error += apart.double().square().sum()

    def left(self, change: torch.Tensor) -> float:
        """|original - now (1 + change)|^2."""
        twice = (change * self.cross).sum(dtype=torch.float64)
        square = (change * (self.own @ change)).sum(dtype=torch.float64)
        return (self.error - 2.0 * twice + square).item()


@dataclass(frozen=True)
class Solution:
    """See the module."""

    matrix: torch.Tensor
    explained: float
    """Of the squared difference, on rows that were not fitted."""
    ridge: float


class NormalEquations:
    """See the module."""

    def __init__(self, size: int, like: torch.Tensor) -> None:
        self.fitted, self.choosing = Grams(size, like), Grams(size, like)
        self.tokens = 0

    def add(self, now: torch.Tensor, original: torch.Tensor) -> None:
        """Rows [tokens, H] of both."""
        chosen = torch.arange(len(now), device=now.device) % CHOOSING == CHOOSING - 1
        self.fitted.add(now[~chosen], original[~chosen])
        self.choosing.add(now[chosen], original[chosen])
        self.tokens += len(now)

    def solve(self, add_up: Sum) -> Solution | None:
        """None: the values are those of the original."""
        for grams in (self.fitted, self.choosing):
            for one in (grams.own, grams.cross, grams.error):
                add_up(one)
        before = self.choosing.error.item()
        if not before or not self.fitted.error.item():
            return None
        scale = self.fitted.own.diagonal().mean().item()
        errors = {ridge: self.choosing.left(change) for ridge, change in _changes(self.fitted, scale)}
        best = min(errors, key=errors.__getitem__)
        both = Grams(len(self.fitted.own), self.fitted.own)
        for mine, one, other in zip(
            vars(both).values(), vars(self.fitted).values(), vars(self.choosing).values(), strict=True
        ):
            mine.copy_(one + other)
        ((_, change),) = _changes(both, both.own.diagonal().mean().item(), (best,))
        matrix = torch.eye(len(change), dtype=change.dtype, device=change.device) + change
        return Solution(matrix, 1.0 - errors[best] / before, best)


def _changes(grams: Grams, scale: float, ridges: tuple[float, ...] = RIDGES) -> Iterator[tuple[float, torch.Tensor]]:
    """For each ridge, M - 1."""
    values, vectors = torch.linalg.eigh(grams.own)
    turned = vectors.T @ grams.cross
    for ridge in ridges:
        yield ridge, vectors @ (turned / (values.clamp_min(0.0) + ridge * scale)[:, None])
