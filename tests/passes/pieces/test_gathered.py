# SPDX-License-Identifier: Apache-2.0
"""Exchanges by all-gather: found where experts are chosen between gather and scatter, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed._functional_collectives as fc
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.pieces import cut_exchanges
from farskip_compile.passes.pieces.gathered import gathered_exchanges


def graph_of(group: Any, *, chosen: bool = True, scattered: bool = True, layers: int = 1) -> fx.Graph:
    """Tokens are gathered, each is weighed by its best score, and sums are scattered. What is read beside them was
    gathered before."""

    def step(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        w = w + fc.wait_tensor(fc.all_gather_tensor(w[:4], 0, group)) if layers == 1 else w
        for _ in range(layers):
            tokens = fc.wait_tensor(fc.all_gather_tensor(x, 0, group))
            scores = tokens @ w
            best = scores.topk(1).values if chosen else scores.softmax(-1)[:, :1]
            mixed = (tokens * best) @ w
            done = fc.reduce_scatter_tensor(mixed, "sum", 0, group) if scattered else fc.all_reduce(mixed, "sum", group)
            x = x + fc.wait_tensor(done)[: x.shape[0]]
        return x

    return make_fx(step, tracing_mode="fake")(torch.zeros(4, 8), torch.zeros(8, 8)).graph


def launches(graph: fx.Graph) -> list[fx.Node]:
    return [one.launch for one in gathered_exchanges(graph)]


@pytest.mark.parametrize("layers", [1, 3])
def test_each_exchange_is_found_and_stays(layers: int, two_ranks: Any) -> None:
    graph = graph_of(two_ranks, layers=layers)
    gathers = ops.calls(graph, lambda node: "all_gather" in ops.op_name(node))[-layers:]
    assert launches(graph) == gathers
    assert len(gathers) == layers
    before = str(graph)
    found = cut_exchanges(graph, 2)
    assert (found.exchanges, [one.launch for one in found.refused]) == (0, [node.name for node in gathers])
    assert "tokens are gathered for all experts of a rank" in str(found.refused[0])
    assert str(graph) == before


@pytest.mark.parametrize("without", ["chosen", "scattered"])
def test_other_gathers_are_no_exchange(without: str, two_ranks: Any) -> None:
    assert gathered_exchanges(graph_of(two_ranks, **{without: False})) == []


def test_beside_an_all_to_all_gathers_are_those_of_a_sequence(two_ranks: Any) -> None:
    """Weights of the router reach the scatter of such a model, too."""
    graph = graph_of(two_ranks)
    (gather,) = launches(graph)
    with graph.inserting_before(gather):
        graph.call_function(torch.ops._c10d_functional.all_to_all_single.default, (gather.args[0], [2, 2], [2, 2], "0"))
    assert gathered_exchanges(graph) == []


def test_another_group_is_another_exchange(two_ranks: Any) -> None:
    graph = graph_of(two_ranks)
    (scatter,) = ops.calls(graph, lambda node: "reduce_scatter" in ops.op_name(node))
    comms.set_process_group(scatter, "another")
    assert gathered_exchanges(graph) == []
