"""A linear layer without bias that knows which slice of it this rank holds.

Contract: `ColumnLinear` holds some of the outputs, `RowLinear` some of the inputs. Neither communicates: the output
of a row-sharded layer is a partial sum, and its user decides when to reduce it.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from farskip_compile.models.config import shard_size
from farskip_compile.models.sharding import Shard, Shards


class ColumnLinear(nn.Linear):
    """Weight [outputs / ranks, inputs]: whole input, a slice of the output."""

    def __init__(self, inputs: int, outputs: int, group: dist.ProcessGroup | None, what: str) -> None:
        shard = Shard(0, group)
        super().__init__(inputs, shard_size(outputs, shard.ranks, what), bias=False)
        self.shards: Shards = {"weight": (shard,)}


class RowLinear(nn.Linear):
    """Weight [outputs, inputs / ranks]: a slice of the input, a partial sum of the whole output."""

    def __init__(self, inputs: int, outputs: int, group: dist.ProcessGroup | None, what: str) -> None:
        shard = Shard(1, group)
        super().__init__(shard_size(inputs, shard.ranks, what), outputs, bias=False)
        self.shards: Shards = {"weight": (shard,)}
