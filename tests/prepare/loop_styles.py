# SPDX-License-Identifier: Apache-2.0
"""Blocks of experts with loops that depend on data, in the styles of public code.

Contract: each is a module for `tests.handwritten.decoder.Decoder`. Attributes have names of their own on purpose:
nothing may depend on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.handwritten.decoder import EXPERTS, MLP, WIDTH, Experts


class Block(Experts):
    """A router and experts."""

    has_shared = False
    top = 2

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.router(x).softmax(-1).topk(self.top, -1)


class Skips(Block):
    """Teaching code: `continue` without tokens."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(-1, x.shape[-1])
        weights, chosen = self.choose(flat)
        out = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            idx, k = torch.where(chosen == e)
            if idx.numel() == 0:
                continue
            out[idx] += weights[idx, k, None] * expert(flat[idx])
        return out.view_as(x)


class Asks(Block):
    """The same the other way round, on a mask."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(-1, x.shape[-1])
        weights, chosen = self.choose(flat)
        out = torch.zeros_like(flat)
        for e in range(len(self.experts)):
            mask = (chosen == e).any(dim=-1)
            if mask.any():
                gate = (weights * (chosen == e)).sum(-1)
                out[mask] += self.experts[e](flat[mask]) * gate[mask].unsqueeze(-1)
        return out.view_as(x)


class Lists(Block):
    """Mixtral in transformers before 4.42: indices as lists."""

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        flat = x.view(-1, width)
        weights, chosen = self.choose(flat)
        out = torch.zeros((batch * length, width), dtype=x.dtype, device=x.device)
        mask = F.one_hot(chosen, num_classes=EXPERTS).permute(2, 1, 0)
        for number in range(EXPERTS):
            expert = self.experts[number]
            idx, top_x = torch.where(mask[number])
            if top_x.shape[0] == 0:
                continue
            top_x_list = top_x.tolist()
            idx_list = idx.tolist()
            state = flat[None, top_x_list].reshape(-1, width)
            out.index_add_(0, top_x, (expert(state) * weights[top_x_list, idx_list, None]).to(flat.dtype))
        return out.reshape(batch, length, width)


class Hit(Block):
    """Mixtral in transformers 4.5x: over the experts that were hit, whose number is a tensor of one element."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(-1, x.shape[-1])
        weights, chosen = self.choose(flat)
        out = torch.zeros_like(flat)
        mask = F.one_hot(chosen, num_classes=EXPERTS).permute(2, 1, 0)
        expert_hit = torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()
        for e in expert_hit:
            expert = self.experts[e]
            idx, top_x = torch.where(mask[e].squeeze(0))
            state = flat[None, top_x].reshape(-1, flat.shape[-1])
            out.index_add_(0, top_x, (expert(state) * weights[top_x, idx, None]).to(flat.dtype))
        return out.view_as(x)


class HitOnce(Hit):
    """One expert for each token: here `mask[e]` must keep the dimension that `squeeze(0)` takes away."""

    top = 1


class Named(Hit):
    """Switch in transformers: experts in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleDict({f"expert_{e}": MLP() for e in range(EXPERTS)})

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.choose(flat)
        out = torch.zeros_like(flat)
        for e in chosen.unique().tolist():
            idx, k = torch.where(chosen == e)
            out = out.index_add(0, idx, weights[idx, k, None] * self.experts[f"expert_{e}"](flat[idx]))
        return out.view_as(x)


class Stacked(Block):
    """Over what was hit, with stacked weights."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = None
        self.w = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) / 4)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.choose(flat)
        out = torch.zeros_like(flat)
        for e in chosen.unique():
            idx, k = torch.where(chosen == e)
            out.index_add_(0, idx, weights[idx, k, None] * F.gelu(flat[idx] @ self.w[e.item()]))
        return out.view_as(x)


class Sorted(Block):
    """DeepSeek: tokens sorted by expert, counts on the host, a helper for inference without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(-1, x.shape[-1])
        weights, chosen = self.choose(flat)
        if self.training:
            rows = flat.repeat_interleave(chosen.shape[1], dim=0)
            y = torch.empty_like(rows)
            which = chosen.view(-1)
            for e, expert in enumerate(self.experts):
                y[which == e] = expert(rows[which == e])
            return (y.view(*weights.shape, -1) * weights.unsqueeze(-1)).sum(dim=1).view_as(x)
        return self.infer(flat, chosen, weights).view_as(x)

    @torch.no_grad()
    def infer(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        counts = chosen.new_zeros((chosen.shape[0], len(self.experts)))
        counts.scatter_(1, chosen, 1)
        order = chosen.view(-1).argsort()
        rows = x[order // chosen.shape[1]]
        outputs: list[Any] = []
        start = 0
        for e, count in enumerate(counts.sum(dim=0).cpu().numpy()):
            end = start + count
            if count == 0:
                continue
            outputs.append(self.experts[e](rows[start:end]))
            start = end
        outs = torch.cat(outputs, dim=0) if len(outputs) else rows.new_empty(0)
        new = torch.empty_like(outs)
        new[order] = outs
        return (new.view(*chosen.shape, -1) * weights.unsqueeze(-1)).sum(dim=1).type(new.dtype)


class Counted(Block):
    """DeepSeek-V3's reference: counts as a list."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(-1, WIDTH)
        weights, chosen = self.choose(flat)
        y = torch.zeros_like(flat)
        counts = torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()
        for e in range(EXPERTS):
            if counts[e] == 0:
                continue
            idx, top = torch.where(chosen == e)
            y[idx] += self.experts[e](flat[idx]) * weights[idx, top, None]
        return y.view_as(x)


class Sliced(Block):
    """DeepSeek-V1: running sums of counts, slices between them."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.choose(flat)
        out, order = torch.zeros_like(flat), chosen.flatten().argsort(stable=True)
        ends = chosen.flatten().bincount(minlength=EXPERTS).cpu().numpy().cumsum(0)
        tokens = order // chosen.shape[1]
        for e, end in enumerate(ends):
            start = 0 if e == 0 else ends[e - 1]
            if start == end:
                continue
            mine = tokens[start:end]
            rows = self.experts[e](flat[mine]) * weights.reshape(-1, 1)[order[start:end]]
            out = out.scatter_add(0, mine.view(-1, 1).repeat(1, WIDTH), rows)
        return out.view_as(x)


class Capacity(Block):
    """Switch: at most so many tokens for each expert."""

    top = 1
    capacity = 3

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.choose(flat)
        out = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            tokens = torch.eq(chosen[:, 0], e).nonzero(as_tuple=True)[0]
            if len(tokens) > self.capacity:
                tokens = tokens[: self.capacity]
            if len(tokens) == 0:
                continue
            out[tokens, :] = expert(flat[tokens, :])
        return (out * weights).view_as(x)


class Bracketed(Block):
    """The loop in brackets, over parts of a split."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.choose(flat)
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()
        parts = flat[order // self.top].split(counts)
        rows = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True) if len(part) > 0])
        rows = rows * weights.flatten()[order, None]
        return torch.zeros_like(flat).index_add(0, order // self.top, rows).view_as(x)


class Chooses(Block):
    """makeMoE: the capacity by a conditional expression; small batches have none at all."""

    def forward(self, x: Tensor) -> Tensor:
        _, chosen = self.choose(x)
        gates = self.router(x).softmax(-1).view(-1, EXPERTS)
        flat = x.view(-1, x.size(-1))
        capacity = int(x.shape[0] * x.shape[1] * self.top / EXPERTS)
        updates = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            found = torch.nonzero((chosen == e).any(dim=-1).view(-1)).squeeze(-1)
            limited = found[:capacity] if found.numel() > capacity else found
            if limited.numel() > 0:
                updates.index_add_(0, limited, expert(flat[limited]) * gates[limited, e].unsqueeze(1))
        return updates.view_as(x)


@dataclass
class Calculated:
    """What `ParameterLists` gives."""

    states: Tensor
    dropped: Tensor


class ParameterLists(Block):
    """LLaMA-MoE: a list of parameters for each projection, a loop in brackets, outputs in a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = None
        self.up = nn.ParameterList([nn.Parameter(torch.randn(WIDTH + 1, WIDTH) / 4) for _ in range(EXPERTS)])
        self.down = nn.ParameterList([nn.Parameter(torch.randn(WIDTH, WIDTH + 1) / 4) for _ in range(EXPERTS)])

    def expert(self, x: Tensor, e: int) -> Tensor:
        return F.linear(F.silu(F.linear(x, self.up[e])), self.down[e])

    def calculate(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Calculated:
        tokens = torch.arange(len(x)).repeat_interleave(chosen.size(1))
        _, order = chosen.flatten().sort(0)
        tokens, weights = tokens.index_select(0, order), weights.flatten().index_select(0, order)
        counts = chosen.flatten().bincount(minlength=EXPERTS).tolist()
        split = torch.split(x.index_select(0, tokens), counts, dim=0)
        outputs = [self.expert(split[i], i) for i in range(EXPERTS) if split[i].shape[0] > 0]
        scaled = torch.mul(torch.cat(outputs, 0), weights.reshape(-1, 1))
        return Calculated(torch.zeros_like(x).index_add(0, tokens, scaled), torch.tensor(-1.0))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.choose(flat)
        return self.calculate(flat, chosen, weights).states.view_as(x)


class SkipsNoRows(Block):
    """torchtune: what all experts give is added if a rank has any of it, which no graph knows."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.choose(flat)
        counts = torch.histc(chosen.view(-1).float(), bins=EXPERTS, min=0, max=EXPERTS).long()
        order = torch.argsort(chosen.view(-1), stable=True)
        tokens = (order // self.top).reshape(-1, 1).expand(-1, WIDTH)
        parts = torch.gather(flat, dim=0, index=tokens).split(counts.tolist())
        rows = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        rows = rows * weights.view(-1)[order].unsqueeze(-1)
        out = torch.zeros_like(flat)
        if rows.numel() > 0:
            out = torch.scatter_add(input=out, dim=0, index=tokens, src=rows)
        return out.view_as(x)


STYLES: tuple[type[Block], ...] = (
    Skips,
    Asks,
    Lists,
    Hit,
    HitOnce,
    Named,
    Stacked,
    Sorted,
    Counted,
    Sliced,
    Capacity,
    Bracketed,
    Chooses,
    ParameterLists,
    SkipsNoRows,
)
