# SPDX-License-Identifier: Apache-2.0
"""FLOPs and bytes of single operators against closed forms; the roofline."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from farskip_compile.costs import load_profile
from farskip_compile.costs.operators import OpCost, combine, kernel_cost, op_cost, op_seconds
from tests.costs.traced import only, shape_env, trace, trace_fake

aten = torch.ops.aten
LENGTH = st.integers(1, 48)


@settings(max_examples=10)
@given(LENGTH, LENGTH, LENGTH, LENGTH)
def test_products(b: int, m: int, k: int, n: int) -> None:
    matrix = 2 * m * k * n
    cases = [
        (torch.mm, [(m, k), (k, n)], matrix),
        (torch.addmm, [(n,), (m, k), (k, n)], matrix),
        (torch.bmm, [(b, m, k), (b, k, n)], b * matrix),
        (torch.baddbmm, [(b, m, n), (b, m, k), (b, k, n)], b * matrix),
        (torch.mv, [(m, k), (k,)], 2 * m * k),
        (torch.dot, [(k,), (k,)], 2 * k),
        (torch.addbmm, [(m, n), (b, m, k), (b, k, n)], b * matrix),
    ]
    for function, shapes, flops in cases:
        cost = only(trace_fake(function, *shapes))
        assert (cost.flops, cost.kind, cost.dtype) == (flops, "matmul", torch.float32)
    cost = only(trace_fake(torch.mm, (m, k), (k, n)))
    assert (cost.bytes_read, cost.bytes_written) == (4 * (m * k + k * n), 4 * m * n)


@settings(max_examples=10)
@given(st.integers(1, 3), LENGTH, LENGTH, st.integers(1, 3), st.integers(3, 9))
def test_convolution_forward_and_backward(batch: int, c_in: int, c_out: int, kernel: int, side: int) -> None:
    def forward(x, w):
        return aten.convolution(x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)

    def backward(grad, x, w):
        return aten.convolution_backward(
            grad, x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]
        )

    out = side - kernel + 1
    x, w, y = (batch, c_in, side, side), (c_out, c_in, kernel, kernel), (batch, c_out, out, out)
    flops = 2 * batch * c_in * c_out * kernel**2 * out**2
    assert only(trace_fake(forward, x, w)).flops == flops
    assert only(trace_fake(backward, y, x, w)).flops == 2 * flops


@settings(max_examples=10)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 24), st.integers(2, 24), st.booleans())
def test_attention_forward_and_backward(b: int, h: int, s_q: int, s_k: int, causal: bool) -> None:
    """Forward: q k^T and p v. Backward: the scores again, and four products. Masks are not counted, but executed."""
    q, kv, lse, d = (b, h, s_q, 8), (b, h, s_k, 8), (b, h, s_q), 8
    product = 2 * b * h * s_q * s_k * d

    def cpu(q, k, v):
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)[0]

    def cpu_backward(grad, q, k, v, out, lse):
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, lse, 0.0, causal)

    def gpu(q, k, v):
        return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[0]

    cost = only(trace_fake(cpu, q, kv, kv))
    assert (cost.flops, cost.kind, cost.executed) == (2 * product, "attention", 1.0)
    cost = only(trace_fake(cpu_backward, q, q, kv, kv, q, lse))
    assert (cost.flops, cost.kind) == (5 * product, "attention")
    cost = only(trace_fake(gpu, q, kv, kv, device="cuda", dtype=torch.bfloat16))
    assert (cost.flops, cost.kind, cost.executed) == (2 * product, "attention", 0.5 if causal else 1.0)


@settings(max_examples=10)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_grouped_products(groups: int, t: int, k: int, n: int) -> None:
    """Sizes are multiples of 16, as the kernel wants them."""
    t, k, n = 16 * t, 16 * k, 16 * n
    flops = 2 * t * k * n

    def rows(x, w, offsets):
        return torch._grouped_mm(x, w.transpose(1, 2), offsets.to(torch.int32))

    def weights(x, y, offsets):
        return torch._grouped_mm(x.t(), y, offsets.to(torch.int32))

    def columns(w, y, offsets):
        return torch._grouped_mm(w, y.t(), offsets.to(torch.int32))

    cases = ((rows, [(t, k), (groups, n, k)]), (weights, [(t, k), (t, n)]), (columns, [(groups, n, k), (t, k)]))
    for function, shapes in cases:
        graph = trace_fake(function, *shapes, (groups,), device="cuda", dtype=torch.bfloat16)
        (node,) = [node for node in graph.nodes if "grouped_mm" in str(node.target)]
        cost = op_cost(node, int)
        assert (cost.flops, cost.kind, cost.dtype) == (flops, "grouped_matmul", torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_bytes_follow_the_type(dtype: torch.dtype) -> None:
    cost = only(trace_fake(torch.clone, (5, 7), dtype=dtype))
    assert (cost.flops, cost.kind, cost.dtype) == (0, "memory", dtype)
    assert cost.bytes_read == cost.bytes_written == 35 * dtype.itemsize


VIEWS = {
    "view": lambda x: x.view(2, 3, 4),
    "expand": lambda x: x.unsqueeze(0).expand(9, 6, 4),
    "permute": lambda x: x.t(),
    "slice": lambda x: x[1:3, ::2],
    "split": lambda x: x.split([2, 4])[1],
    "alias": lambda x: aten.alias(x),
    "unsafe_view": lambda x: aten._unsafe_view(x, [24]),
    "empty": lambda x: torch.empty_like(x),
    "select": lambda x: x[0],
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_and_allocations_cost_nothing(name: str) -> None:
    graph = trace_fake(VIEWS[name], (6, 4))
    costs = [op_cost(node, int) for node in graph.nodes]
    assert {(c.flops, c.bytes_read, c.bytes_written, c.launches, c.kind) for c in costs} == {(0, 0, 0, 0, "free")}
    assert sum(op_seconds(cost, load_profile("h100")) for cost in costs) == 0.0


def test_what_each_kind_of_operator_moves() -> None:
    row, table, index = 4 * 16, 4 * 100 * 16, 8 * 5

    def moved(function, *inputs):
        cost = only(trace(function, *inputs))
        return cost.bytes_read, cost.bytes_written

    w, i, x = torch.zeros(100, 16), torch.zeros(5, dtype=torch.int64), torch.zeros(5, 16)
    assert moved(lambda w, i: aten.embedding(w, i), w, i) == (5 * row + index, 5 * row)  # rows, not the whole table
    assert moved(lambda w, i: w.index_select(0, i), w, i) == (5 * row + index, 5 * row)
    assert moved(lambda x: torch.zeros_like(x), x) == (0, 5 * row)
    assert moved(lambda a, b: a.copy_(b), x, x.clone()) == (5 * row, 5 * row)
    assert moved(lambda w, i, x: aten.index_put_(w, [i], x), w, i, x) == (5 * row + index, 5 * row)
    assert moved(lambda w, i, x: aten.index_put(w, [i], x), w, i, x) == (table + 5 * row + index, table)
    assert moved(lambda x, b: aten.add(x, b.expand(5, 16)), x, x[:1].clone()) == (6 * row, 5 * row)  # one row, not five
    assert moved(lambda x: x + x, x) == (5 * row, 5 * row)


def test_arithmetic_of_loops() -> None:
    """One operation an element; a series counts as several; a reduction counts what it reads; moves count nothing."""
    x, row = torch.zeros(6, 8), torch.zeros(8)

    def counted(function, *inputs):
        return only(trace(function, *inputs)).element_ops

    assert counted(lambda x, row: x + row, x, row) == 48
    assert counted(torch.exp, x) == 5 * 48
    assert counted(torch.erf, x) == 8 * 48
    assert (counted(lambda x: x**2, x), counted(lambda x: 2.0**x, x)) == (48, 24 * 48)
    assert (counted(lambda x: x <= 1, x), counted(lambda x: x + 1, x.long())) == (3 * 48, 2 * 48)
    assert counted(lambda x: x.sum(1), x) == 48
    assert counted(lambda x: aten.cat([x, x]), x) == 0
    assert counted(lambda x: x @ x.t(), x) == 0


def test_host_reads_are_told_apart() -> None:
    graph = trace(lambda x: x.sum() + x.sum().item(), torch.ones(3))
    assert "sync" in {op_cost(node, int).kind for node in graph.nodes}


def test_unknown_operators_count_by_their_bytes() -> None:
    @torch.library.custom_op("farskip_test::mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    mystery.register_fake(torch.empty_like)
    cost = only(trace_fake(mystery, (8, 8)))
    assert (cost.kind, cost.flops, cost.bytes_read, cost.bytes_written) == ("unknown", 0, 256, 256)


def test_bodies_of_higher_order_operators() -> None:
    """A branch costs as much as the costlier of its bodies."""

    def function(flag, x, w):
        return torch.cond(flag, lambda x, w: (x @ w) @ w, lambda x, w: x.sin(), (x, w))

    graph = trace(function, torch.tensor(True), torch.zeros(4, 4), torch.zeros(4, 4))
    cost = only(graph)
    assert (cost.flops, cost.kind, cost.launches) == (2 * 2 * 4**3, "matmul", 2)


@settings(max_examples=10)
@given(st.integers(2, 40), st.integers(2, 40))
def test_symbolic_sizes_install_no_guard(batch: int, tokens: int) -> None:
    inner = nn.functional.scaled_dot_product_attention

    def function(x, w):
        y = (x @ w).relu()
        y = inner(y.unsqueeze(1), y.unsqueeze(1), y.unsqueeze(1)).squeeze(1)
        return torch.cat([y, x], -1).sum(0)

    inputs = torch.zeros(batch, tokens, 8), torch.zeros(8, 8)
    dynamic, static = trace(function, *inputs, dynamic=True), trace(function, *inputs)
    env = shape_env(dynamic)
    before = list(env.guards), dict(env.replacements), list(env.deferred_runtime_asserts)

    def hint(length):
        return length if isinstance(length, int) else int(length.node.expr.xreplace(env.backed_var_to_val))

    assert [op_cost(node, hint) for node in dynamic.nodes if node.op == "call_function"] != []
    total = combine(op_cost(node, hint) for node in dynamic.nodes)
    assert total.flops == combine(op_cost(node, int) for node in static.nodes).flops > 0
    assert (list(env.guards), dict(env.replacements), list(env.deferred_runtime_asserts)) == before


def test_estimates_that_do_not_fit_each_other_still_count() -> None:
    """Formulas assert equal sizes; estimates of data-dependent ones need not be."""
    graph = trace(torch.mm, torch.zeros(6, 10), torch.zeros(10, 7), dynamic=True)
    numbers = iter([6, 10, 11, 7, 6, 7] * 4)  # the inner size, asked for twice, has two answers
    (node,) = [node for node in graph.nodes if node.op == "call_function" and "mm" in node.name]
    assert op_cost(node, lambda length: next(numbers)).flops == 2 * 6 * 7 * 10


COSTS = st.builds(
    OpCost,
    flops=st.integers(0, 10**15),
    bytes_read=st.integers(0, 10**12),
    bytes_written=st.integers(0, 10**12),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, None]),
    kind=st.sampled_from(["matmul", "attention", "grouped_matmul", "memory", "unknown"]),
    launches=st.integers(0, 3),
    element_ops=st.integers(0, 10**12),
)


@given(COSTS, COSTS, st.sampled_from(["h100", "mi300x", "cpu-gloo"]), st.booleans())
def test_more_work_is_never_cheaper(cost: OpCost, other: OpCost, name: str, tf32: bool) -> None:
    profile = load_profile(name)
    more = OpCost(
        cost.flops + other.flops,
        cost.bytes_read + other.bytes_read,
        cost.bytes_written + other.bytes_written,
        cost.dtype,
        cost.kind,
        cost.launches + other.launches,
        element_ops=cost.element_ops + other.element_ops,
    )
    assert 0.0 <= op_seconds(cost, profile, tf32=tf32) <= op_seconds(more, profile, tf32=tf32)


def test_roofline_on_worked_examples() -> None:
    """H100: 989.4 TFLOP/s bfloat16 at 72 %, 3.35 TB/s at 89 %, 33.5 T elementwise operations/s, 3 us a kernel."""
    profile = load_profile("h100")
    bound_by_compute = OpCost(10**12, 10**6, 10**6, torch.bfloat16, "matmul")
    assert op_seconds(bound_by_compute, profile) == pytest.approx(1e12 / (989.4e12 * 0.72) + 3e-6)
    bound_by_memory = OpCost(10**6, 10**9, 10**9, torch.bfloat16, "matmul")
    assert op_seconds(bound_by_memory, profile) == pytest.approx(2e9 / (3.35e12 * 0.89) + 3e-6)
    causal = OpCost(10**12, 0, 0, torch.float16, "attention", executed=0.5)
    assert op_seconds(causal, profile) == pytest.approx(0.5e12 / (989.4e12 * 0.35) + 3e-6)
    series = OpCost(10**12, 0, 0, torch.bfloat16, "matmul", element_ops=10**12)
    assert op_seconds(series, profile) == pytest.approx(1e12 / (989.4e12 * 0.72) + 1e12 / 33.5e12 + 3e-6)
    single = OpCost(10**12, 0, 0, torch.float32, "matmul")
    assert op_seconds(single, profile) == pytest.approx(1e12 / (67e12 * 0.72) + 3e-6)
    assert op_seconds(single, profile, tf32=True) == pytest.approx(1e12 / (494.7e12 * 0.72) + 3e-6)


def test_fused_kernels() -> None:
    product = OpCost(100, 40, 8, torch.bfloat16, "matmul")
    relu = OpCost(0, 8, 8, torch.bfloat16, "memory", element_ops=4)
    assert combine([product, relu]) == OpCost(100, 48, 16, torch.bfloat16, "matmul", launches=2, element_ops=4)
    assert kernel_cost([relu, product], bytes_read=40, bytes_written=8) == replace(product, element_ops=4)
    assert combine([]).launches == 0


def test_fusion_leaves_what_crosses_kernels() -> None:
    """sin, exp and their sum become one loop: it reads x, and writes for the product, through the view."""

    def function(x, w):
        y = x.sin()
        z = (y.exp() + y).view(4, 4)
        return z @ w

    graph = trace(function, torch.zeros(16), torch.zeros(4, 4))
    costs = {str(n.target): op_cost(n, int, fused=True) for n in graph.nodes if op_cost(n, int).launches}
    assert [(c.bytes_read, c.bytes_written, c.launches) for c in costs.values()] == [
        (64, 0, 0),  # sin: reads x, stays in registers
        (0, 0, 0),  # exp
        (0, 64, 1),  # add: read by the product
        (128, 64, 1),  # mm is a kernel of its own
    ]
    alone = [op_cost(n, int) for n in graph.nodes]
    assert sum(c.bytes_written for c in alone) == 4 * 64
    behind_a_view = trace(lambda x: x.sin().view(4, 4).exp(), torch.zeros(16))
    sin, _, exp = (op_cost(n, int, fused=True) for n in behind_a_view.nodes if n.op == "call_function")
    assert (sin.bytes_written, exp.bytes_read) == (0, 0)


@pytest.mark.parametrize(
    ("length", "part"), [(24, 1.0), (512, 1.0), (513, 0.75), (1024, 0.75), (1536, 2 / 3), (2048, 0.625)]
)
def test_the_kernel_for_cpus_skips_whole_blocks_of_keys(length: int, part: float) -> None:
    def attention(q, k, v):
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)[0]

    shape = (1, 2, length, 8)
    assert only(trace_fake(attention, shape, shape, shape)).executed == pytest.approx(part)
