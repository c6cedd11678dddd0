# SPDX-License-Identifier: Apache-2.0
"""Operators that programs for a GPU are made of, put into the models of this package.

In:    a model whose attention is latent, on the CPU; the name of a variant.
Out:   the same model, changed in place. `flex` and `grouped` compute what it did before; `fp8` multiplies in 8 bits in
       attention, where queries are made and heads are left; `sliced` cuts each expert among the ranks, instead of the
       experts, as engines with data-parallel attention do: tokens are gathered before them, sums reduced and scattered.
Never: renames a parameter.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from farskip_compile.models import ParallelConfig
from farskip_compile.models.attention import Heads, LatentAttention
from farskip_compile.models.experts import Experts
from farskip_compile.models.rope import Rope
from farskip_compile.models.sharding import initialise

BLOCK = 128
LARGEST = 448.0
"""Of float8_e4m3fn."""


class FlexAttention(LatentAttention):
    """Causal, by a mask of blocks that is an input of the program, of which there is one: at most `BLOCK` tokens."""

    blocks: torch.Tensor
    places: torch.Tensor

    def mix(self, heads: Heads, rope: Rope) -> torch.Tensor:
        """See the base class."""
        query, key, value = heads
        size = (query.shape[-2], key.shape[-2])
        mask = BlockMask(size, self.blocks, self.places, None, None, self.blocks, self.places, None, None,
                         (BLOCK, BLOCK), _causal)  # fmt: skip
        # few tokens would get the kernel for decoding
        mixed = flex_attention(query, key, value, block_mask=mask, kernel_options={"FORCE_USE_FLEX_ATTENTION": True})
        return self.output(mixed.transpose(1, 2).flatten(2))


def _causal(batch: Any, head: Any, query: Any, key: Any) -> Any:
    return query >= key


class GroupedExperts(Experts):
    """All local experts by one grouped product each; `offs` says where the rows of each end."""

    def all(self, buffer: torch.Tensor) -> torch.Tensor:
        """See the base class."""
        experts, slots, _ = buffer.shape
        ends = torch.arange(1, experts + 1, device=buffer.device, dtype=torch.int32) * slots
        return self._grouped(buffer.flatten(0, 1), ends).view(buffer.shape)

    def each(self, segments: list[torch.Tensor]) -> list[torch.Tensor]:
        """See the base class."""
        sizes = [segment.shape[0] for segment in segments]
        ends = torch.tensor(sizes, device=segments[0].device).cumsum(0).to(torch.int32)
        return list(self._grouped(torch.cat(segments), ends).split(sizes))

    def _grouped(self, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        inner = F.silu(torch._grouped_mm(rows, self.gate, offs=ends)) * torch._grouped_mm(rows, self.up, offs=ends)
        return torch._grouped_mm(inner, self.down, offs=ends)


class _EightBits(torch.autograd.Function):
    """Rows [N, D] times a weight [O, D], and the gradient of the rows; that of the weight is a whole product."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, weight)
        return _multiply(rows, weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, weight = ctx.saved_tensors
        return _multiply(grad, weight.t().contiguous()), grad.t() @ rows


class EightBitLinear(nn.Linear):
    """Both factors in 8 bits, with a scale for each row of either."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _EightBits.apply(x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


def _multiply(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    (a, of_a), (b, of_b) = _in_eight_bits(rows), _in_eight_bits(others)
    return torch._scaled_mm(a, b.t(), scale_a=of_a, scale_b=of_b.t(), out_dtype=rows.dtype)


def _in_eight_bits(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = (rows.abs().amax(-1, keepdim=True).float() / LARGEST).clamp_min(1e-12)
    return (rows.float() / scale).to(torch.float8_e4m3fn), scale


def change(model: Any, variant: str, group: dist.ProcessGroup) -> Any:
    """See the module's contract."""
    for layer in model.layers:
        attention, moe = layer.attention, layer.feed_forward
        if variant == "flex":
            attention.__class__ = FlexAttention
            attention.register_buffer("blocks", torch.ones(1, 1, 1, dtype=torch.int32), persistent=False)
            attention.register_buffer("places", torch.zeros(1, 1, 1, 1, dtype=torch.int32), persistent=False)
        elif variant == "grouped":
            moe.experts.__class__ = GroupedExperts
        elif variant == "fp8":
            attention.query_up.__class__ = attention.output.__class__ = EightBitLinear
        elif variant == "sliced":
            dtype = moe.experts.gate.dtype
            moe.experts = Experts(model.config, ParallelConfig(tp_group=group)).to(dtype)
    if variant == "sliced":
        initialise(model, 0)
    return model
