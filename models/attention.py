# SPDX-License-Identifier: Apache-2.0
"""Causal self-attention: grouped-query (Qwen, Llama, Mixtral) and multi-head latent (DeepSeek).

Contract: `partial(h, rope)` maps the normed stream [B, T, D] to the output of this rank's heads [B, T, D], *not*
reduced over the tensor-parallel ranks; `forward` is `partial` followed by that reduction. Separating the two lets the
FarSkip form add other partial sums before it reduces. `partial` is `project` (queries, keys, values) and then `mix`
(the attention proper and the output projection): an overlapped schedule puts other work between them. With a cache
(`rope.past`), `mix` appends the keys and values to it and attends to everything in it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from farskip_compile.models.config import ModelConfig, ParallelConfig, shard_size
from farskip_compile.models.norm import RMSNorm
from farskip_compile.models.rope import Rope, rotate
from farskip_compile.models.sharding import ColumnLinear, RowLinear
from farskip_compile.models.tensor_parallel import reduce_partial

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries [B, H, T, .], keys [B, KV, T, .] and values [B, KV, T, .] of this rank, rotated."""


class Attention(nn.Module):
    """Common to both kinds: the attention proper, and the reduction over the tensor-parallel ranks."""

    output: RowLinear

    def __init__(self, config: ModelConfig, parallel: ParallelConfig, index: int) -> None:
        super().__init__()
        self.parallel = parallel
        self.index = index
        """Index of the layer, by which a cache stores keys and values."""
        self.heads = shard_size(config.heads, parallel.tp_size, "attention heads")
        self.options: dict[str, Any] = {}
        """Options of the kernel: whether several query heads share a key."""
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def project(self, h: torch.Tensor, rope: Rope) -> Heads:
        """Map the normed stream [B, T, D] to the inputs of the attention proper."""
        raise NotImplementedError

    def mix(self, heads: Heads, rope: Rope) -> torch.Tensor:
        """Run the attention proper and the output projection: the output of this rank's heads, [B, T, D]."""
        query, key, value = heads
        if rope.past is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, **self.options)
        else:
            keys, values = rope.past.append(self.index, key, value)
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=rope.past.mask, **self.options)
        return self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))  # mixed: [B, H, T, .]

    def partial(self, h: torch.Tensor, rope: Rope) -> torch.Tensor:
        """Output of this rank's heads, [B, T, D]."""
        return self.mix(self.project(h, rope), rope)

    def reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """Sum over the tensor-parallel ranks, for the tokens of this rank's stream."""
        return reduce_partial(partial, self.parallel)

    def forward(self, h: torch.Tensor, rope: Rope) -> torch.Tensor:
        """Output of all heads, for the tokens of this rank's stream."""
        return self.reduce(self.partial(h, rope))


class GroupedQueryAttention(Attention):
    """Several query heads share one key and value head."""

    def __init__(self, config: ModelConfig, parallel: ParallelConfig, index: int) -> None:
        super().__init__(config, parallel, index)
        self.options = {"enable_gqa": True}
        shard_size(config.kv_heads, parallel.tp_size, "key/value heads")
        self.head_dim = config.head_dim
        width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        group = parallel.tp_group
        self.query = ColumnLinear(config.hidden_size, width, group, "query channels")
        self.key = ColumnLinear(config.hidden_size, kv_width, group, "key channels")
        self.value = ColumnLinear(config.hidden_size, kv_width, group, "value channels")
        self.output = RowLinear(width, config.hidden_size, group, "attention channels")
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.query_norm = RMSNorm(config.head_dim, config.norm_epsilon)
            self.key_norm = RMSNorm(config.head_dim, config.norm_epsilon)

    def _split_heads(self, flat: torch.Tensor) -> torch.Tensor:
        """[B, T, H * head_dim] -> [B, T, H, head_dim]."""
        return flat.unflatten(-1, (-1, self.head_dim))

    def project(self, h: torch.Tensor, rope: Rope) -> Heads:
        """Map the normed stream [B, T, D] to the inputs of the attention proper."""
        query = self.query_norm(self._split_heads(self.query(h))).transpose(1, 2)  # [B, H, T, head_dim]
        key = self.key_norm(self._split_heads(self.key(h))).transpose(1, 2)  # [B, KV, T, head_dim]
        value = self._split_heads(self.value(h)).transpose(1, 2)  # [B, KV, T, head_dim]
        return rotate(query, rope), rotate(key, rope), value


class LatentAttention(Attention):
    """Keys and values are expanded from one narrow latent per token; positions have separate channels."""

    def __init__(self, config: ModelConfig, parallel: ParallelConfig, index: int) -> None:
        super().__init__(config, parallel, index)
        self.kv_rank = config.kv_rank
        self.nope_head_dim = config.nope_head_dim
        self.rope_head_dim = config.rope_head_dim
        self.value_head_dim = config.value_head_dim
        query_width = config.heads * (config.nope_head_dim + config.rope_head_dim)
        kv_width = config.heads * (config.nope_head_dim + config.value_head_dim)
        group = parallel.tp_group
        # every rank has the whole narrow latents; only what is per head is sharded
        self.query_down: nn.Module = nn.Identity()
        if config.query_rank is not None:
            self.query_down = nn.Sequential(
                nn.Linear(config.hidden_size, config.query_rank, bias=False),
                RMSNorm(config.query_rank, config.norm_epsilon),
            )
        self.query_up = ColumnLinear(config.query_rank or config.hidden_size, query_width, group, "query channels")
        self.kv_down = nn.Linear(config.hidden_size, config.kv_rank + config.rope_head_dim, bias=False)
        self.kv_norm = RMSNorm(config.kv_rank, config.norm_epsilon)
        self.kv_up = ColumnLinear(config.kv_rank, kv_width, group, "key and value channels")
        self.output = RowLinear(config.heads * config.value_head_dim, config.hidden_size, group, "attention channels")

    def project(self, h: torch.Tensor, rope: Rope) -> Heads:
        """Map the normed stream [B, T, D] to the inputs of the attention proper."""
        query = self.query_up(self.query_down(h)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        query_nope, query_rope = query.split([self.nope_head_dim, self.rope_head_dim], dim=-1)  # [B, H, T, .]

        latent, key_rope = self.kv_down(h).split([self.kv_rank, self.rope_head_dim], dim=-1)  # [B, T, .]
        key_value = self.kv_up(self.kv_norm(latent)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key_nope, value = key_value.split([self.nope_head_dim, self.value_head_dim], dim=-1)  # [B, H, T, .]
        key_rope = rotate(key_rope.unsqueeze(1), rope).expand(-1, self.heads, -1, -1)  # one for all heads

        query = torch.cat([query_nope, rotate(query_rope, rope)], dim=-1)
        return query, torch.cat([key_nope, key_rope], dim=-1), value


def make_attention(config: ModelConfig, parallel: ParallelConfig, index: int) -> Attention:
    """Return the configured attention of layer `index`."""
    kind = GroupedQueryAttention if config.attention == "gqa" else LatentAttention
    return kind(config, parallel, index)
