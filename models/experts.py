"""The routed experts: many small SwiGLU feed-forwards whose weights are stacked in 3-D tensors.

Contract: `forward(rows, expert_of_row, slots)` gives row i the output of expert `expert_of_row[i]`, wherever that
expert lives. Under expert parallelism a rank holds experts / ranks of them; under tensor parallelism a slice of
every inner width, and the output is a partial sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from farskip_compile.models.config import ModelConfig, ParallelConfig, shard_size
from farskip_compile.models.dispatch import (
    combine_dropless,
    combine_padded,
    dispatch_dropless,
    dispatch_padded,
)
from farskip_compile.models.sharding import Shard, Shards


class Experts(nn.Module):
    """This rank's experts, and the way to and from everybody else's."""

    def __init__(self, config: ModelConfig, parallel: ParallelConfig) -> None:
        super().__init__()
        self.experts = config.experts
        self.ep_group = parallel.ep_group
        self.dropless = parallel.ep_mode == "dropless"
        local = shard_size(config.experts, parallel.ep_size, "routed experts")
        inner = shard_size(config.moe_intermediate_size, parallel.tp_size, "inner channels of an expert")
        self.gate = nn.Parameter(torch.empty(local, config.hidden_size, inner))  # [E, D, I]
        self.up = nn.Parameter(torch.empty(local, config.hidden_size, inner))  # [E, D, I]
        self.down = nn.Parameter(torch.empty(local, inner, config.hidden_size))  # [E, I, D]
        by_expert = Shard(0, parallel.ep_group)
        self.shards: Shards = {
            "gate": (by_expert, Shard(2, parallel.tp_group)),
            "up": (by_expert, Shard(2, parallel.tp_group)),
            "down": (by_expert, Shard(1, parallel.tp_group)),
        }

    def forward(self, rows: torch.Tensor, expert_of_row: torch.Tensor, slots: int) -> torch.Tensor:
        """Rows [R, D] through their experts, [R, D]. `slots` is the room per expert of a padded exchange."""
        if self.dropless and self.ep_group is not None:
            segments, sizes = dispatch_dropless(rows, expert_of_row, self.experts, self.ep_group)
            return combine_dropless([self._one(i, segment) for i, segment in enumerate(segments)], sizes)
        buffer, places = dispatch_padded(rows, expert_of_row, self.experts, slots, self.ep_group)
        return combine_padded(self._all(buffer), places)

    def _all(self, buffer: torch.Tensor) -> torch.Tensor:
        """Every local expert on its block: [E, slots, D] -> [E, slots, D]."""
        return torch.bmm(F.silu(torch.bmm(buffer, self.gate)) * torch.bmm(buffer, self.up), self.down)

    def _one(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        """One local expert on its rows: [?, D] -> [?, D]."""
        return (F.silu(rows @ self.gate[expert]) * (rows @ self.up[expert])) @ self.down[expert]
