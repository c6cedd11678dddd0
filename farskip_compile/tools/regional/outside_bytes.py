# SPDX-License-Identifier: Apache-2.0
"""The memory that a rank holds outside of a layer while the layer runs: the parameters of the rest of the model.

Contract: computed when a layer is compiled, since layers may have been sharded since the model was prepared. A sharded
parameter counts as one rank's equal share, so that all ranks get the same number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def bytes_outside_layer(model: nn.Module, layers: Sequence[nn.Module]) -> int:
    """Return the bytes of the parameters and buffers of `model` without those of the largest of its `layers`.

    While a layer runs, its own parameters may be gathered from all ranks.
    """
    return _module_bytes(model) - max(map(_module_bytes, layers))


def _module_bytes(module: nn.Module) -> int:
    return sum(map(_tensor_bytes, chain(module.parameters(), module.buffers())))


def _tensor_bytes(value: torch.Tensor) -> int:
    ranks = 1
    if isinstance(value, DTensor):
        sizes = zip(value.placements, value.device_mesh.shape, strict=True)
        ranks = math.prod(size for placement, size in sizes if placement.is_shard())
    return math.ceil(value.numel() * value.element_size() / ranks)
