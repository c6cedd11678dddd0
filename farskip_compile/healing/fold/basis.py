# SPDX-License-Identifier: Apache-2.0
"""A change of basis that floating point computes exactly: a permutation, with signs and powers of two.

Contract: `Basis` changes values along one axis (`value @ M`) and parameters along one (`weight @ M.T`), by copies; both
are exact in every floating type, so that what only moves, casts or adds up values is changed without any rounding.
An operator that is not linear, or that treats features in different ways, is found by it: signs, sizes and places of
all features change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SCALES = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Of the largest number of a value: how far two orders of the additions of a product may be apart."""
COARSE = 6e-2
"""The same in 16 bits."""


@dataclass(frozen=True)
class Basis:
    """The matrix `M` with `M[source[j], j] = scale[j]`, zero elsewhere."""

    source: torch.Tensor
    """[H], where feature j comes from."""
    scale: torch.Tensor
    """[H]."""

    @classmethod
    def of_size(cls, size: int, device: torch.device) -> Basis:
        """The same in every process."""
        generator = torch.Generator().manual_seed(size)
        source = torch.randperm(size, generator=generator)
        scale = torch.tensor(SCALES)[torch.randint(len(SCALES), (size,), generator=generator)]
        return cls(source.to(device), scale.to(device))

    def changed(self, value: torch.Tensor, axis: int) -> torch.Tensor:
        """`value @ M` along `axis`."""
        return value.index_select(axis, self.source) * self._along(value, axis)

    def folded(self, weight: torch.Tensor, axis: int) -> torch.Tensor:
        """`weight @ M.T` along `axis`: applied to a value, what `weight` gives for the changed value."""
        return torch.empty_like(weight).index_copy_(axis, self.source, weight * self._along(weight, axis))

    def axis_of(self, before: torch.Tensor, after: torch.Tensor) -> int | None:
        """Along which axis `after` is `before`, changed; None: along none."""
        if before.shape != after.shape or not before.is_floating_point():
            return None
        axes = [axis for axis in range(before.dim() - 1, -1, -1) if before.shape[axis] == len(self.source)]
        return next((axis for axis in axes if alike(self.changed(before, axis), after)), None)

    def _along(self, value: torch.Tensor, axis: int) -> torch.Tensor:
        shape = [1] * value.dim()
        shape[axis] = -1
        return self.scale.to(value.dtype).view(shape)


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two values are the same up to the order of additions."""
    if one.shape != other.shape:
        return False
    if not one.numel():
        return True
    size = one.abs().max().item()
    return (one - other).abs().max().item() <= TOLERANCE.get(one.dtype, COARSE) * max(size, 1e-30)
