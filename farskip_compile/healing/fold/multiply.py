# SPDX-License-Identifier: Apache-2.0
"""A matrix multiplied into a parameter along one axis, in place.

In:    a parameter, or a distributed one; the axis that meets the features of a value; a matrix [H, H].
Out:   the same parameter with `weight @ matrix.T` along that axis, so that it gives for a value what it gave for
       `value @ matrix`; computed in the matrix's type, rounded once.
Never: a second copy of the parameter: it is changed in parts.
"""

from __future__ import annotations

from typing import Any

import torch

PART = 2**24
"""Numbers that are changed at a time."""


@torch.no_grad()
def multiply(parameter: torch.Tensor, axis: int, matrix: torch.Tensor) -> None:
    """See the module."""
    if hasattr(parameter, "to_local"):
        _distributed(parameter, axis, matrix)
    else:
        _plain(parameter, axis, matrix)


def _plain(value: torch.Tensor, axis: int, matrix: torch.Tensor) -> None:
    moved = value.detach().movedim(axis, -1)
    if moved.dim() == 1:
        moved.copy_(matrix.to(moved.device) @ moved.to(matrix.dtype))
        return
    matrix = matrix.T.to(moved.device)
    rows = max(1, PART // max(1, moved[0].numel()))
    for part in moved.split(rows):
        if part.dim() > 2 and part.numel() > PART:
            for one in part:
                one.copy_(one.to(matrix.dtype) @ matrix)
        else:
            part.copy_(part.to(matrix.dtype) @ matrix)


def _distributed(value: Any, axis: int, matrix: torch.Tensor) -> None:
    """Each rank changes its part, if that has the whole axis; otherwise it is gathered, changed and spread again."""
    from torch.distributed.tensor import distribute_tensor

    dims = {placement.dim % value.dim() for placement in value.placements if hasattr(placement, "dim")}
    if axis not in dims:
        _plain(value.to_local(), axis, matrix)
        return
    whole = value.full_tensor()
    _plain(whole, axis, matrix)
    spread = distribute_tensor(whole, value.device_mesh, value.placements)
    value.to_local().copy_(spread.to_local())
