# SPDX-License-Identifier: Apache-2.0
"""The experts of a rank, and the exchange of tokens with other ranks.

In:    a model of transformers on fake tensors, and the ranks that share the experts.
Out:   the same model: each module of stacked experts holds this rank's, and its forward exchanges tokens.
Never: computes anything of use.

    all-to-all    as the exchange of `farskip_compile.prepare`: ranks that share tokens take a slice each; counts are
                  exchanged, rows are dispatched, the local experts run, rows are combined and weighted, slices gathered
    all-reduce    all ranks hold all tokens. Each runs its experts on the rows that chose them and returns its part of a
                  sum, for the all-reduce after the whole block (`cuts`)
    all-gather    the tokens of all ranks, their choices and weights are gathered on each; the results of its experts
                  are its part of a sum, which a reduce-scatter brings back. Engines with data-parallel attention and
                  without an all-to-all do this. (AMD's engine gathers first and then routes all tokens on each rank,
                  which is the same.)

An all-to-all in pieces, each for some of a rank's experts, runs as the backend cuts it: all pieces are dispatched, then
the experts of each run, then all are combined.

The rows of a rank depend on data. Here they are fixed at those of the fullest rank: with a symbol for each pair of
ranks in each layer, 256 ranks could not be captured in a day.

Experts with a form of their own (Llama-4's run every expert on every token, which no engine does) get transformers'
usual interface first: rows, chosen experts, weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farskip_compile._compat.collectives import all_gather, all_to_all_single, reduce_scatter, wait_tensor
from farskip_compile.errors import ConfigError
from farskip_compile.tools.prepare.kernels import is_dispatched


class ChosenExperts(nn.Module):
    """Stacked experts [E, D, 2 I] and [E, I, D] on the rows that chose them, by grouped products."""

    def __init__(self, gate_up: nn.Parameter, down: nn.Parameter, activation: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj, self.act_fn = gate_up, down, activation
        self.num_experts = gate_up.shape[0]

    def forward(self, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Map rows [T, D], chosen experts [T, k] and weights [T, k] to results [T, D]."""
        k = chosen.shape[-1]
        expert, order = chosen.flatten().sort(stable=True)
        counts = expert.new_zeros(self.num_experts).index_add(0, expert, torch.ones_like(expert))
        ends = counts.cumsum(0).to(torch.int32)
        inputs = rows[order // k] * weights.flatten()[order].unsqueeze(-1)
        gate, up = F.grouped_mm(inputs, self.gate_up_proj, offs=ends).chunk(2, dim=-1)
        results = F.grouped_mm(up * self.act_fn(gate), self.down_proj, offs=ends)
        return torch.zeros_like(rows).index_add(0, order // k, results)


def give_usual_interface(model: nn.Module) -> None:
    """Make blocks that run every expert on every token run the chosen experts only."""
    for block in model.modules():
        experts, router = getattr(block, "experts", None), getattr(block, "router", None)
        if isinstance(experts, nn.Module) and isinstance(router, nn.Module) and not is_dispatched(experts):
            shared = getattr(block, "shared_expert", None)
            if not isinstance(shared, nn.Module) or not hasattr(experts, "act_fn"):
                raise ConfigError(
                    f"{type(experts).__name__} has no interface for chosen experts",
                    way_out="a model whose experts transformers dispatches",
                )
            block.experts = ChosenExperts(experts.gate_up_proj, experts.down_proj, experts.act_fn)  # type: ignore[arg-type]
            block.forward = _chosen(block)


def _chosen(block: Any) -> Any:
    def forward(hidden: Tensor) -> tuple[Tensor, Tensor]:
        rows = hidden.reshape(-1, hidden.shape[-1])
        scores, logits = block.router(rows)
        weights, chosen = scores.topk(block.top_k, dim=-1)
        return block.shared_expert(rows) + block.experts(rows, chosen, weights), logits

    return forward


def is_experts(module: nn.Module) -> bool:
    """Return whether `module` is stacked experts with the usual interface."""
    return isinstance(module, ChosenExperts) or is_dispatched(module)


def spread_experts(
    model: nn.Module, ep_mesh: Any, tp_mesh: Any, exchange: str, imbalance: float, pieces: int = 1
) -> None:
    """Divide the experts among the ranks of `ep_mesh`, and make their forward exchange tokens.

    Args:
        model: of transformers, on fake tensors.
        ep_mesh: the ranks that share the experts.
        tp_mesh: the ranks that hold the same tokens as this one.
        exchange: `all-reduce`, `all-to-all` or `all-gather`.
        imbalance: rows of the fullest rank over the mean.
        pieces: of an all-to-all.

    Raises:
        ConfigError: the experts can't be divided this way.
    """
    found = [(name, module) for name, module in model.named_modules() if is_experts(module)]
    if not found:
        raise ConfigError("the model has no routed experts", way_out="a Mixture-of-Experts model")
    for name, module in found:
        _cut_experts(name, module, ep_mesh.size() * pieces)
        held = int(module.num_experts)
        if exchange == "all-to-all":
            others = [copy.deepcopy(module) for _ in range(pieces - 1)]
            runs = [module.forward, *(one.forward for one in others)]
            module.other_pieces = nn.ModuleList(others)
            module.forward = _sliced(_all_to_all(runs, held, ep_mesh, imbalance), tp_mesh)
        elif exchange == "all-gather":
            partial_sum = _partial_sum(module.forward, held, ep_mesh, imbalance)
            module.forward = _sliced(_all_gather(partial_sum, ep_mesh), tp_mesh)
        else:
            module.forward = _partial_sum(module.forward, held, ep_mesh, imbalance)


def _cut_experts(name: str, module: Any, ranks: int) -> None:
    experts: int = module.num_experts
    if experts % ranks:
        raise ConfigError(
            f"{experts} experts of {name} can't be cut among {ranks} ranks", way_out=f"an ep that divides {experts}"
        )
    module.num_experts = experts // ranks
    for key, parameter in list(module.named_parameters(recurse=False)):
        if parameter.shape[0] == experts:
            cut = parameter.new_empty(experts // ranks, *parameter.shape[1:])
            setattr(module, key, nn.Parameter(cut, requires_grad=parameter.requires_grad))


def _all_to_all(runs: Sequence[Any], held: int, ep_mesh: Any, imbalance: float) -> Any:
    """Return a forward that exchanges tokens by all-to-all; `runs` are the forwards of each piece's `held` experts."""
    ranks, group, pieces = ep_mesh.size(), ep_mesh.get_group(), len(runs)

    def forward(hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        tokens, k = chosen.shape
        each = ceil(tokens * k / ranks / pieces)  # rows to each rank, in each piece
        most = ceil(tokens * k * imbalance / ranks / pieces)  # rows that the fullest one gets from each
        expert = chosen.flatten()
        order = F.pad(expert.argsort(stable=True), (0, each * ranks * pieces - tokens * k))
        counts = expert.new_zeros(ranks * held * pieces).scatter_add(0, expert, torch.ones_like(expert))
        incoming = wait_tensor(all_to_all_single(counts, None, None, group)).split(ranks * held)
        parts = hidden[order // k].split(each * ranks)
        arrived = [wait_tensor(all_to_all_single(part, [most] * ranks, [each] * ranks, group)) for part in parts]
        results = []
        for run, rows, count in zip(runs, arrived, incoming, strict=True):
            local = torch.arange(held, device=rows.device).repeat(ranks)
            local = local.repeat_interleave(count, output_size=most * ranks).unsqueeze(-1)
            results.append(run(rows, local, torch.ones_like(local, dtype=rows.dtype)))
        back = [wait_tensor(all_to_all_single(one, [each] * ranks, [most] * ranks, group)) for one in results]
        whole = torch.cat(back) if pieces > 1 else back[0]
        whole = torch.zeros_like(whole).index_copy(0, order, whole)[: tokens * k]
        # weights in float32 must not widen the stream; transformers casts in the same place
        return (whole.view(tokens, k, -1) * weights.unsqueeze(-1)).sum(1).to(hidden.dtype)

    return forward


def _all_gather(partial_sum: Any, ep_mesh: Any) -> Any:
    group = ep_mesh.get_group()

    def forward(hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        gathered = (wait_tensor(all_gather(value, 0, group)) for value in (hidden, chosen, weights))
        return wait_tensor(reduce_scatter(partial_sum(*gathered), "sum", 0, group))

    return forward


def _sliced(exchange: Any, mesh: Any) -> Any:
    """Return a forward in which each rank of `mesh` exchanges its slice of the common rows, and gathers the results."""
    if mesh.size() == 1:
        return exchange

    def forward(*inputs: Tensor) -> Tensor:
        size = ceil(inputs[0].shape[0] / mesh.size())
        mine = (value[mesh.get_local_rank() * size :][:size] for value in inputs)
        return all_gather(exchange(*mine), 0, mesh.get_group())

    return forward


def _partial_sum(run: Any, held: int, ep_mesh: Any, imbalance: float) -> Any:
    ranks, first = ep_mesh.size(), ep_mesh.get_local_rank() * held

    def forward(hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        tokens, k = chosen.shape
        rows = min(tokens * k, ceil(tokens * k * imbalance / ranks))
        local = chosen.flatten() - first
        local = local.where((local >= 0) & (local < held), held)  # others' experts come last
        expert, order = local.sort(stable=True)
        expert, order = expert[:rows], order[:rows]
        results = run(hidden[order // k], expert.unsqueeze(-1), weights.flatten()[order].unsqueeze(-1).to(hidden.dtype))
        return torch.zeros_like(hidden).index_add(0, order // k, results)

    return forward
