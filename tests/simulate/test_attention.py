# SPDX-License-Identifier: Apache-2.0
"""The operators that stand for fused attention: shapes, FLOPs, gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from farskip_compile._compat.fakes import FakeTensorMode
from farskip_compile.measure.simulate import attention

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 8), st.integers(1, 8))


@given(st.integers(1, 30), st.integers(0, 40))
def test_pairs_are_counted_as_one_by_one(tokens: int, window: int) -> None:
    expected = sum(
        1 for q, k in itertools.product(range(tokens), repeat=2) if k <= q and (not window or q - k < window)
    )
    assert attention.pairs(tokens, window) == expected


@given(SHAPES)
def test_flops_are_those_of_products_over_the_visible_pairs(shape: tuple[int, ...]) -> None:
    batch, heads, tokens, width, values = shape
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        query = torch.empty(batch, heads, tokens, width, requires_grad=True)
        key, value = torch.empty(batch, 1, tokens, width), torch.empty(batch, 1, tokens, values)
        out = attention.causal_attention(query, key, value, attention.WHOLE)
        assert out.shape == (batch, heads, tokens, values)
        forward = counter.get_total_flops()
        (gradient,) = torch.autograd.grad(out.sum(), [query])
        assert gradient.shape == query.shape
    assert forward == 2 * batch * heads * (width + values) * tokens * (tokens + 1) // 2
    assert counter.get_total_flops() - forward == int(2.5 * forward)


def test_a_cache_is_read_by_every_new_token() -> None:
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        query, cached = torch.empty(2, 8, 1, 192), torch.empty(2, 1, 100, 576)
        out = attention.cached_attention(query, cached, query, torch.empty(2, 8, 1, 128), None)
    assert out.shape == (2, 8, 1, 128)
    assert counter.get_total_flops() == 4 * 2 * 8 * 100 * 576


def test_nothing_runs_them() -> None:
    one = torch.zeros(1, 1, 2, 4)
    with pytest.raises(NotImplementedError, match="captures"):
        attention.causal_attention(one, one, one, attention.WHOLE)


def test_the_costs_know_them() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    from farskip_compile.costs.operators import op_cost
    from farskip_compile.costs.sizes import SizeHints
    from farskip_compile.passes.graph import ops

    def function(query, key, value):
        return attention.causal_attention(query, key, value, attention.WHOLE)

    with FakeTensorMode() as mode:
        inputs = [torch.empty(2, heads, 64, 32, dtype=torch.bfloat16) for heads in (8, 2, 2)]
        graph = make_fx(function, tracing_mode="real")(*inputs).graph
    node = next(node for node in graph.nodes if node.op == "call_function")
    assert ops.is_attention(node)
    cost = op_cost(node, SizeHints(graph))
    assert mode is not None
    assert (cost.kind, cost.executed, cost.launches) == ("attention", 1.0, 1)
    assert cost.flops == 2 * 16 * (64 * 65 // 2) * (32 + 32)
    assert cost.bytes_read == 2 * 2 * (8 + 2 + 2) * 64 * 32, "keys and values are read once, whatever shares them"
