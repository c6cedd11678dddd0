# SPDX-License-Identifier: Apache-2.0
"""What a rank holds beside a layer while the layer runs: the parameters of the rest of the model.

Contract: read when a layer is compiled, since layers may have been sharded since. Of a sharded parameter it is one
rank's equal share, so that all ranks get the same number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def bytes_beside(model: nn.Module, layers: Sequence[nn.Module]) -> int:
    """Bytes of the parameters and buffers of `model`, but for those of the largest one of its `layers`: the one that
    runs, whose parameters may be whole meanwhile."""
    return _held(model) - max(map(_held, layers))


def _held(module: nn.Module) -> int:
    return sum(map(_bytes, chain(module.parameters(), module.buffers())))


def _bytes(value: torch.Tensor) -> int:
    ranks = 1
    if isinstance(value, DTensor):
        sizes = zip(value.placements, value.device_mesh.shape, strict=True)
        ranks = math.prod(size for placement, size in sizes if placement.is_shard())
    return math.ceil(value.numel() * value.element_size() / ranks)
