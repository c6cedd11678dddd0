# SPDX-License-Identifier: Apache-2.0
"""Weights that are the same on one rank and on many: drawn whole from a seed, then sharded.

Contract: a module that holds a slice of a weight declares it in `self.shards` (parameter name -> shards).
`initialise(model, seed)` walks the model in order and draws every *whole* weight from one generator, so that each rank
of a parallel run gets exactly its slice of the one-process model with the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from farskip_compile.models.config import shard_size


@dataclass(frozen=True)
class Shard:
    """The equal share of a weight that this rank holds along one dimension."""

    dim: int
    """The sharded dimension."""
    group: dist.ProcessGroup | None
    """The ranks that share the weight; None: it is whole."""

    @property
    def ranks(self) -> int:
        """The number of parts."""
        return 1 if self.group is None else self.group.size()

    @property
    def index(self) -> int:
        """The number of the part that this rank holds."""
        return 0 if self.group is None else self.group.rank()


Shards = dict[str, tuple[Shard, ...]]


class ColumnLinear(nn.Linear):
    """A product without bias by a weight [outputs / ranks, inputs]: whole input, a slice of the output."""

    def __init__(self, inputs: int, outputs: int, group: dist.ProcessGroup | None, what: str) -> None:
        shard = Shard(0, group)
        super().__init__(inputs, shard_size(outputs, shard.ranks, what), bias=False)
        self.shards: Shards = {"weight": (shard,)}


class RowLinear(nn.Linear):
    """A product without bias by a weight [outputs, inputs / ranks]: a slice of the input, a partial sum as output."""

    def __init__(self, inputs: int, outputs: int, group: dist.ProcessGroup | None, what: str) -> None:
        shard = Shard(1, group)
        super().__init__(shard_size(inputs, shard.ranks, what), outputs, bias=False)
        self.shards: Shards = {"weight": (shard,)}


def local_slice(whole: torch.Tensor, shards: tuple[Shard, ...]) -> torch.Tensor:
    """Return the part of a whole weight that this rank holds."""
    for shard in shards:
        whole = whole.chunk(shard.ranks, dim=shard.dim)[shard.index]
    return whole


def shards_of(model: nn.Module) -> Shards:
    """Return the cuts of every parameter and buffer of a model, by full name; whole ones have an empty tuple."""
    cuts: Shards = {}
    for path, module in model.named_modules():
        own: Shards = getattr(module, "shards", {})
        names = [name for name, _ in module.named_parameters(recurse=False)]
        names += [name for name, _ in module.named_buffers(recurse=False)]
        for name in names:
            cuts[f"{path}.{name}" if path else name] = own.get(name, ())
    return cuts


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Fill the model with seeded weights of such size that every term of the residual stream matters."""
    generator = torch.Generator().manual_seed(seed)
    cuts = shards_of(model)
    for name, local in model.state_dict(keep_vars=True).items():
        whole_shape = list(local.shape)
        for shard in cuts[name]:
            whole_shape[shard.dim] *= shard.ranks
        draw = torch.randn(whole_shape, generator=generator, dtype=torch.float64)
        local.copy_(local_slice(_scaled(name, draw), cuts[name]))


def _scaled(name: str, draw: torch.Tensor) -> torch.Tensor:
    """Bring standard normal numbers to the size that fits the parameter's role."""
    if name.endswith("token_embedding.weight"):
        return draw
    if draw.dim() == 1:  # norm weights near one, biases near zero: never trivial, so that a mix-up shows
        return 0.1 * draw + (1.0 if name.endswith("weight") else 0.0)
    inputs = draw.shape[-1] if draw.dim() == 2 else draw.shape[-2]  # nn.Linear is [out, in], experts [E, in, out]
    return draw / inputs**0.5
