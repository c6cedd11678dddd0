# SPDX-License-Identifier: Apache-2.0
"""What is asked of a graph beside FLOPs and bytes: shapes of products, loops, transposes, new memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx
from torch._inductor import config as inductor_config

from farskip_compile._compat import inductor, kernel_memory
from farskip_compile.costs import Curve, Curves, load_profile
from farskip_compile.costs.estimates import Estimates
from farskip_compile.costs.fusion import LARGE, fresh_bytes
from farskip_compile.costs.loops import kernel_ops, loop_ops, transposed_bytes
from farskip_compile.costs.operators import OpCost, op_cost, op_seconds
from farskip_compile.costs.sizes import SizeHints
from farskip_compile.measure.calibrate.kernels import SOFTMAX_OPS
from tests.costs.traced import only, trace, trace_fake

aten = torch.ops.aten


def shape_of(function, *shapes, **kwargs):
    cost = only(trace_fake(function, *shapes, **kwargs))
    return cost.batch, cost.shape


def test_shapes_of_products() -> None:
    assert shape_of(torch.mm, (3, 5), (5, 7)) == (1, (3, 5, 7))
    assert shape_of(torch.addmm, (7,), (3, 5), (5, 7)) == (1, (3, 5, 7))
    assert shape_of(torch.bmm, (4, 3, 5), (4, 5, 7)) == (4, (3, 5, 7))
    assert shape_of(torch.baddbmm, (4, 3, 7), (4, 3, 5), (4, 5, 7)) == (4, (3, 5, 7))
    assert shape_of(torch.mv, (3, 5), (5,)) == (1, (3, 5, 1))
    assert shape_of(torch.dot, (5,), (5,)) == (1, None)  # not known: the scalar counts


def test_shapes_of_attention_and_of_its_backward() -> None:
    q, kv, lse = (2, 4, 24, 8), (2, 4, 48, 8), (2, 4, 24)

    def forward(q, k, v):
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]

    def backward(grad, q, k, v, out, lse):
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, lse, 0.0, False)

    assert shape_of(forward, q, kv, kv) == (8, (24, 48, 8))
    assert shape_of(backward, q, q, kv, kv, q, lse) == (8, (24, 48, 8))
    assert only(trace_fake(backward, q, q, kv, kv, q, lse)).backward
    assert not only(trace_fake(forward, q, kv, kv)).backward


def test_groups_share_out_the_rows() -> None:
    def rows(x, w, offsets):
        return torch._grouped_mm(x, w.transpose(1, 2), offsets.to(torch.int32))

    def weights(x, y, offsets):
        return torch._grouped_mm(x.t(), y, offsets.to(torch.int32))

    kwargs = {"device": "cuda", "dtype": torch.bfloat16}
    for function, shapes, expected in (
        (rows, [(64, 32), (4, 48, 32)], (4, (16, 32, 48))),
        (weights, [(64, 32), (64, 48)], (4, (32, 16, 48))),
    ):
        graph = trace_fake(function, *shapes, (4,), **kwargs)
        (node,) = [node for node in graph.nodes if "grouped_mm" in str(node.target)]
        cost = op_cost(node, int)
        assert (cost.batch, cost.shape) == expected


def calls(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_function"]


def test_a_loop_computes_small_values_again_at_every_step() -> None:
    def table_times_heads(x, angles):
        return x * angles.cos()

    graph = trace_fake(table_times_heads, (16, 64, 8), (64, 8))
    cos, mul = calls(graph)
    assert loop_ops([cos, mul], int) == (5 + 1) * 16 * 64 * 8
    assert loop_ops([cos], int) == 5 * 64 * 8
    assert loop_ops([], int) == 0
    norm = trace_fake(lambda x: x * (x.sum(-1, keepdim=True) + 1).rsqrt(), (4, 32))
    total, more, root, scaled = calls(norm)
    assert loop_ops([total], int) == loop_ops([scaled], int) == 4 * 32
    assert loop_ops([more, root, scaled], int) == 4 * 32 + (1 + 5) * 4  # once for each row
    once = 4 * 32  # steps; each loop has one operation more than it computes
    assert kernel_ops([[scaled], [scaled, root]], int) == loop_ops([scaled, root], int) + once  # shared: computed once
    assert kernel_ops([[total], [scaled]], int) == 2 * (once + once)  # a reduction comes first
    assert kernel_ops([[total, root], [scaled, root]], int) == 2 * (2 * once + 5 * 4)  # no part of the other loop
    softmax = trace_fake(lambda x: ((y := (x - x.amax(-1, keepdim=True)).exp()), y / y.sum(-1, keepdim=True)), (4, 32))
    top, less, power, whole, part = calls(softmax)
    assert kernel_ops([[top], [power, less], [whole], [part]], int) == SOFTMAX_OPS * once
    assert kernel_ops([[], []], int) == 0
    summed = trace_fake(lambda x: x.sum(-1), (4, 32))
    assert loop_ops(calls(summed), int) == 4 * 32


def test_transposes_are_those_of_the_innermost_dimension() -> None:
    heads = trace_fake(lambda x: x.transpose(0, 1).contiguous(), (8, 4, 64))
    order = trace_fake(lambda x: x.permute(1, 0, 2).contiguous(), (8, 4, 64))
    across = trace_fake(lambda x: x.permute(0, 2, 1).contiguous(), (8, 4, 64))
    flat = trace_fake(lambda x: x.t().contiguous(), (8, 64))
    assert transposed_bytes(calls(heads), int) == transposed_bytes(calls(order), int) == 0
    assert transposed_bytes(calls(across), int) == 2 * 4 * 8 * 4 * 64
    assert transposed_bytes(calls(flat), int) == 2 * 4 * 8 * 64


SIDE = 2048
BIG = 4 * 2 * SIDE * SIDE


def test_large_results_take_new_memory_unless_equal_memory_is_free() -> None:
    """Two layers of scores and softmax: the second scores get the first's memory, a softmax never does."""
    assert BIG >= LARGE

    def layers(q, k, v):
        for _ in range(2):
            q = torch.softmax(q @ k, -1) @ v
        return q

    graph = trace_fake(layers, (2, SIDE, 8), (2, 8, SIDE), (2, SIDE, 8))
    found = fresh_bytes(graph, int)
    names = [str(node.target).split(".")[1] for node in found]
    assert names == ["bmm", "_softmax", "_softmax"]
    assert set(found.values()) == {BIG}
    assert fresh_bytes(trace_fake(layers, (2, 64, 8), (2, 8, 64), (2, 64, 8)), int) == {}


def test_a_plain_loop_replaces_the_operand_that_dies_with_it() -> None:
    graph = trace_fake(lambda x, w: (x @ w).relu() @ w, (2 * SIDE, SIDE), (SIDE, SIDE))
    first, relu, second = calls(graph)
    found = fresh_bytes(graph, int)
    assert relu not in found
    assert list(found) == [first, second]
    kept = trace_fake(lambda x, w: ((y := x @ w).relu() @ w, y @ w), (2 * SIDE, SIDE), (SIDE, SIDE))
    assert "relu" in [node.name for node in fresh_bytes(kept, int)]


def test_estimates_put_all_of_it_together() -> None:
    """A fused kernel costs the larger of arithmetic and traffic, and its new memory."""
    base = load_profile("cpu-gloo")
    rate = Curve(axes=((1,),), values=(1e9,))
    curves = Curves(memory=rate, strided=replace(rate, values=(1e8,)), fresh=replace(rate, values=(1e9,)))
    profile = replace(
        base, curves=curves, element_rate=1e9, launch_seconds=0.0, sources={**base.sources, "curves": "drawn"}
    )
    graph = trace_fake(lambda x: x.relu().exp(), (2 * SIDE, SIDE))
    relu, exp = calls(graph)
    estimates = Estimates(graph, profile)
    steps = 2 * SIDE * SIDE
    assert estimates.kernel([(False, [exp, relu])], 2 * BIG) == pytest.approx(max(7 * steps, 2 * BIG) / 1e9 + BIG / 1e9)
    behind = estimates.kernel([(False, [relu, exp])], 2 * BIG)  # a view or another node may stand for the loop
    assert behind == estimates.kernel([(False, [exp, relu])], 2 * BIG)
    assert estimates.kernel([(False, [relu])], 8) == pytest.approx(2 * steps / 1e9)
    graph = trace(lambda x: x.sum() + x.sum().item(), torch.ones(3))
    (sync,) = [node for node in graph.nodes if op_cost(node, SizeHints(graph)).kind == "sync"]
    told = replace(profile, sync_seconds=0.25, sources={**profile.sources, "sync_seconds": "drawn"})
    assert Estimates(graph, told).kernel([(True, [sync])], 4) == 0.25
    assert op_seconds(OpCost(0, 0, 0, None, "memory"), profile) == 0.0


def test_taking_a_result_out_of_a_call_costs_nothing() -> None:
    """Inductor names the call behind it, so that attention would be counted once for each of its results."""
    seconds: dict[str, float] = {}

    def read(kernels: Sequence[inductor.Kernel]) -> Sequence[inductor.Kernel]:
        graph = next(n.graph for kernel in kernels for _, nodes in inductor.kernel_parts(kernel) for n in nodes)
        estimates = Estimates(graph, load_profile("cpu-gloo"))
        for kernel in kernels:
            cost = estimates.kernel(inductor.kernel_parts(kernel), inductor.kernel_traffic(kernel))
            seconds[inductor.kernel_name(kernel)] = cost
        return kernels

    def attention(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).sin()

    with inductor_config.patch(_post_fusion_custom_pass=read, fx_graph_cache=False):
        torch.compile(attention)(*torch.rand(3, 1, 2, 64, 16))
    call, *results, _ = seconds.values()
    assert call > 0
    assert results == [0.0] * len(results)
    assert results


@pytest.mark.parametrize("told", [False, True])
def test_inductor_counts_rows_that_depend_on_data_if_it_is_told_of_them(told: bool) -> None:
    rows, width = 100, 64
    found: dict[str, Any] = {}

    def tell(graph: fx.Graph) -> None:
        if told:
            SizeHints(graph, fallback=rows).tell_inductor()

    def read(kernels: Sequence[inductor.Kernel]) -> Sequence[inductor.Kernel]:
        found["traffic"] = max(map(inductor.kernel_traffic, kernels))
        found["buffers"] = [one.size for one in kernel_memory.kernel_buffers(kernels)]
        return kernels

    def rows_of_a_table(which, table):
        return (table[which.nonzero()[:, 0]] * 2) @ table[:5].T

    options = {
        "post_grad_custom_post_pass": tell,
        "reorder_for_compute_comm_overlap": True,
        "reorder_for_compute_comm_overlap_passes": [read],
        "fx_graph_cache": False,
    }
    with inductor_config.patch(options), torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        torch.compile(rows_of_a_table, fullgraph=True)(torch.ones(rows), torch.rand(rows, width))
    sizes = {"rows": rows * width * 4, "product": rows * 5 * 4}
    assert [size in found["buffers"] for size in sizes.values()] == [told, told]
    assert (found["traffic"] >= 2 * sizes["rows"]) is told  # else of the table alone
    assert found["traffic"] < 3 * sizes["rows"]
