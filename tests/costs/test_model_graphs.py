# SPDX-License-Identifier: Apache-2.0
"""Costs of whole forward and backward graphs, as Inductor would get them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from farskip_compile.costs.collectives import collective_cost, is_launch
from farskip_compile.costs.operators import op_cost
from farskip_compile.costs.sizes import SizeHints
from farskip_compile.models import ParallelConfig, build
from tests.costs.traced import compiled_graphs, fake_ranks

aten = torch.ops.aten
LAYERS = ("dense", "moe")
TOKENS, RANKS = 16, 4


def as_many(keys: Any, queries: Any) -> tuple[int, ...]:
    """Keys or values with as many heads as the queries: older counters know no others."""
    return (keys[0], queries[1], *keys[2:])


CPU_ATTENTION = {  # torch's counter does not know these two
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q, as_many(k, q), as_many(v, q)
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(
        g, q, as_many(k, q), as_many(v, q)
    ),
}


def look(graph: fx.Graph) -> dict[str, Any]:
    """Totals of one graph; asking must not install a guard."""
    lengths = [x for node in graph.nodes if isinstance(v := node.meta.get("val"), torch.Tensor) for x in v.shape]
    env = next((x.node.shape_env for x in lengths if isinstance(x, torch.SymInt)), None)
    guards = list(env.guards) if env else []
    size = SizeHints(graph)
    costs = {node: op_cost(node, size) for node in graph.nodes}
    symbolic = [n for n in costs if isinstance(v := n.meta.get("val"), torch.Tensor) and _is_symbolic(v)]
    found = {
        "flops": sum(cost.flops for cost in costs.values()),
        "kinds": Counter(cost.kind for cost in costs.values()),
        "expert flops": sum(costs[n].flops for n in costs if n in symbolic or _reads(n, symbolic)),
        "exchanged": [collective_cost(node, size) for node in graph.nodes if is_launch(node)],
    }
    assert (list(env.guards) if env else []) == guards
    return found


def _is_symbolic(value: torch.Tensor) -> bool:
    return any(isinstance(length, torch.SymInt) for length in value.shape)


def _reads(node: fx.Node, sources: list[fx.Node]) -> bool:
    return any(source in sources for source in node.all_input_nodes)


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe"])
def test_flops_are_those_of_the_eager_model(name: str) -> None:
    """Two kinds of attention: DeepSeek's is taken apart into products, Qwen's is torch's kernel for CPUs."""
    model = build(name, layers=LAYERS)
    ids = torch.randint(0, 128, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as eager:
        model(ids).sum().backward()
    forward, backward = compiled_graphs(model, ids, look)
    total = forward["flops"] + backward["flops"]
    assert abs(total / eager.get_total_flops() - 1) < 0.01
    kinds = forward["kinds"] + backward["kinds"]
    assert "unknown" not in kinds
    assert kinds["matmul"] > 0
    assert (kinds["attention"] == 4) == (name == "qwen3_moe"), kinds


@pytest.mark.parametrize("dynamic", [False, True])
def test_dropless_experts_are_estimated_as_balanced(dynamic: bool) -> None:
    """Row counts depend on data: 16 tokens of 2 batch rows, 2 experts each, make 64 rows, given and got."""
    hidden, inner, rows = 64, 32, 2 * TOKENS * 2
    ids = torch.randint(0, 128, (2, TOKENS))
    if dynamic:
        torch._dynamo.mark_dynamic(ids, 1)
    with fake_ranks(RANKS) as group:
        model = build("deepseek_v3", layers=("moe",), parallel=ParallelConfig(ep_group=group, ep_mode="dropless"))
        forward, backward = compiled_graphs(model, ids, look)
    counts, *exchanged = forward["exchanged"]
    assert counts.bytes == 8 * 8  # how many rows each of 8 experts will get
    assert [(c.kind, c.bytes, c.ranks) for c in exchanged] == [("all_to_all", rows * hidden * 4, RANKS)] * 2
    assert [(c.kind, c.bytes, c.ranks) for c in backward["exchanged"]] == [("all_to_all", rows * hidden * 4, RANKS)] * 2
    assert "unknown" not in forward["kinds"] + backward["kinds"]
    if not dynamic:  # then only what the experts do has symbolic sizes: three products, and twice that backward
        products = 3 * 2 * rows * hidden * inner
        assert forward["expert flops"] == products
        assert backward["expert flops"] == 2 * products


def test_padded_experts() -> None:
    """Room for every token at each of 8 experts; all sizes are known."""
    ids = torch.randint(0, 128, (2, TOKENS))
    with fake_ranks(RANKS) as group:
        model = build("deepseek_v3", layers=LAYERS, parallel=ParallelConfig(ep_group=group))
        forward, backward = compiled_graphs(model, ids, look)
    size = 8 * 2 * TOKENS * 64 * 4
    for graph in (forward, backward):
        assert [(c.kind, c.bytes, c.ranks) for c in graph["exchanged"]] == [("all_to_all", size, RANKS)] * 2
    assert backward["flops"] == 2 * forward["flops"]
