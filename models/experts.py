# SPDX-License-Identifier: Apache-2.0
"""The routed experts: many small SwiGLU feed-forwards whose weights are stacked in 3-D tensors.

Contract: `forward(rows, expert_of_row, slots)` gives row i the output of expert `expert_of_row[i]`, wherever that
expert lives. Under expert parallelism a rank holds experts / ranks of them; under tensor parallelism a slice of
every inner width, and the output is a partial sum. `local` is for rows that are on every rank: it communicates nothing,
and rows of other ranks' experts get zeros, so that the sum over the ranks is the output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from farskip_compile.comm import combine, dispatch
from farskip_compile.models.config import ModelConfig, ParallelConfig, shard_size
from farskip_compile.models.sharding import Shard, Shards


class Experts(nn.Module):
    """This rank's experts, and the exchange of rows with the other ranks."""

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
        self.local_experts = local
        self.first_expert = by_expert.index * local
        self.shards: Shards = {
            "gate": (by_expert, Shard(2, parallel.tp_group)),
            "up": (by_expert, Shard(2, parallel.tp_group)),
            "down": (by_expert, Shard(1, parallel.tp_group)),
        }

    def forward(self, rows: torch.Tensor, expert_of_row: torch.Tensor, slots: int) -> torch.Tensor:
        """Return the outputs [R, D] of the experts of rows [R, D]; `slots` is the room per expert if padded."""
        if self.dropless and self.ep_group is not None:
            segments, sizes = dispatch(rows, expert_of_row, experts=self.experts, group=self.ep_group)
            return combine(self.each(segments), sizes)
        buffer, places = dispatch(rows, expert_of_row, experts=self.experts, group=self.ep_group, slots=slots)
        return combine(self.all(buffer), places)

    def local(self, rows: torch.Tensor, expert_of_row: torch.Tensor, slots: int) -> torch.Tensor:
        """Return the outputs [R, D] of the experts that live here; zeros for rows of other experts."""
        here = expert_of_row - self.first_expert  # below 0 or too large elsewhere: such rows are dropped
        buffer, places = dispatch(rows, here, experts=self.local_experts, group=None, slots=slots)
        return combine(self.all(buffer), places)

    def all(self, buffer: torch.Tensor) -> torch.Tensor:
        """Run every local expert on its block: [E, slots, D] -> [E, slots, D]."""
        return torch.bmm(F.silu(torch.bmm(buffer, self.gate)) * torch.bmm(buffer, self.up), self.down)

    def each(self, segments: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run every local expert on its own number of rows, [?, D] each."""
        return [self._one(expert, segment) for expert, segment in enumerate(segments)]

    def _one(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        """Run one local expert on its rows: [?, D] -> [?, D]."""
        return (F.silu(rows @ self.gate[expert]) * (rows @ self.up[expert])) @ self.down[expert]
