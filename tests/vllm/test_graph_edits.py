# SPDX-License-Identifier: Apache-2.0
"""Operators of vLLM by their schemas, norms that are joined again, all-reduces over shared memory: graph by graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from farskip_compile import declare
from farskip_compile.passes.graph import ops
from farskip_compile.vllm import norms, operators
from tests.vllm import fake_operators

_libraries: list[torch.library.Library] = []


def declared_by_schema(schema: str, *values: torch.Tensor | tuple[str, torch.Tensor], gives: Any = None) -> Any:
    """What one call of an operator of this schema is declared to be; `("held", tensor)`: the model holds it."""
    library = torch.library.Library("_C", "FRAGMENT")
    library.define(schema)
    _libraries.append(library)
    graph = fx.Graph()
    args = []
    for number, value in enumerate(values):
        held = isinstance(value, tuple)
        args.append(graph.create_node("get_attr" if held else "placeholder", f"x{number}"))
        args[-1].meta["example_value"] = value[1] if held else value
    call = graph.call_function(getattr(torch.ops._C, schema.split("(")[0]).default, tuple(args))
    call.meta["example_value"] = gives
    return operators.declare_by_schema(graph).get(f"_C::{schema.split('(')[0]}")


def test_products_and_experts_go_by_their_schemas(monkeypatch):
    monkeypatch.setattr(declare, "_declared", {})
    x, ids, scales = torch.empty(6, 4), torch.empty(6, 2, dtype=torch.long), torch.empty(6, 1)
    w, experts, held_ids = ("held", torch.empty(4, 8)), ("held", torch.empty(3, 8, 4)), ("held", ids)
    out = torch.empty(6, 8)
    found = declared_by_schema
    assert found("t1_moe(Tensor x, Tensor w, Tensor ids) -> Tensor", x, experts, ids, gives=x) == "routed"
    assert found("t2_moe(Tensor x, Tensor w) -> Tensor", x, experts, gives=x) is None, "nothing is chosen"
    assert found("t3_moe(Tensor x, Tensor w, Tensor ids) -> Tensor", x, experts, held_ids, gives=x) is None
    assert found("t4_moe(Tensor x, Tensor w, Tensor ids) -> Tensor", x, w, ids, gives=x) is None, "one matrix"
    assert found("t1_mm(Tensor x, Tensor w) -> Tensor", x, w, gives=out) == "dense"
    assert found("t2_mm(Tensor x, Tensor y) -> Tensor", x, torch.empty(4, 8), gives=out) is None, "two activations"
    assert found("t3_mm(Tensor x, Tensor y, Tensor w) -> Tensor", x, x, w, gives=out) is None, "one more"
    assert found("t4_mm(Tensor x, Tensor s, Tensor w) -> Tensor", x, scales, w, gives=out) == "dense"
    assert found("t5_mm(Tensor(a!) out, Tensor x, Tensor w) -> ()", out, x, w) == "dense"
    assert found("t6_mm(Tensor(a!) out, Tensor x, Tensor w) -> ()", out[:5], x, w) is None, "other rows"
    assert found("t7_mm(Tensor x, Tensor w) -> Tensor[]", x, w, gives=[out, out]) is None, "two results"
    assert found("t8_mixer(Tensor x, Tensor w) -> Tensor", x, w, gives=out) is None, "is not called one"


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (torch.empty(3, 4), torch.empty(3, 4), 1),
        (torch.empty(1, 4), torch.empty(4), 0),
        (torch.empty(3, 4), torch.empty(3, 4, dtype=torch.bfloat16), 0),
        (torch.empty(3, 4, dtype=torch.bfloat16), torch.empty(3, 4, dtype=torch.bfloat16), 1),
    ],
    ids=["alike", "broadcast", "another dtype", "half"],
)
def test_a_norm_is_joined_with_a_sum_of_two_alike_only(first, second, joined):
    """The operator takes two of one shape and dtype, and gives their sum in that."""
    fake_operators.register()
    graph = fx.Graph()
    x, y, weight = (graph.placeholder(name) for name in ("x", "y", "weight"))
    total = graph.call_function(torch.add, (x, y))
    norm = graph.call_function(torch.ops.vllm_ir.rms_norm.default, (total, weight, 1e-6))
    graph.output((norm, total))
    values = (first, second, torch.empty(4), first + second, first + second)
    for node, value in zip((x, y, weight, total, norm), values, strict=True):
        node.meta["example_value"] = value
    assert norms.join(graph) == joined


def doubled(handle: int, data: torch.Tensor) -> None:
    data.mul_(2)


@pytest.fixture
def shm_allreduce() -> None:
    if not hasattr(torch.ops._C, "shm_allreduce"):
        library = torch.library.Library("_C", "FRAGMENT")
        _libraries.append(library)
        library.define("shm_allreduce(int handle, Tensor(a!) data) -> ()")
        library.impl("shm_allreduce", doubled, "CPU")


@pytest.mark.usefixtures("shm_allreduce")
def test_one_whose_memory_is_read_under_another_name_stays():
    from farskip_compile.vllm import shared_memory

    graph = fx.Graph()
    x = graph.placeholder("x")
    value = graph.call_function(torch.relu, (x,))
    other = graph.call_method("view", (value, 2))
    write = graph.call_function(torch.ops._C.shm_allreduce.default, (0, value))
    graph.output((graph.call_function(torch.neg, (other,)),))
    held = torch.empty(2)
    for node in graph.nodes:
        if node.op != "output":
            node.meta["example_value"] = held if node in (value, other) else torch.empty(2)
    write.meta["example_value"] = None
    assert shared_memory.write_out(graph) == 0
    assert fx.GraphModule(nn.Module(), graph)(torch.ones(2))[0].tolist() == [-2, -2]


@pytest.mark.usefixtures("shm_allreduce")
def test_an_all_reduce_in_place_is_written_as_one_that_returns_the_sum():
    from farskip_compile.vllm import shared_memory

    graph = fx.Graph()
    x = graph.placeholder("x")
    value = graph.call_function(torch.relu, (x,))
    early = graph.call_function(torch.neg, (value,))
    write = graph.call_function(torch.ops._C.shm_allreduce.default, (0, value))
    late = graph.call_function(torch.neg, (value,))
    graph.output((early, late))
    for node in (x, value, early, late):
        node.meta["example_value"] = torch.empty(2, device="meta")
    write.meta["example_value"] = None
    assert shared_memory.write_out(graph) == 1
    assert "farskip::shm_all_reduce" in [ops.op_name(node) for node in graph.nodes]
    module = fx.GraphModule(nn.Module(), graph)
    assert [one.tolist() for one in module(torch.ones(2))] == [[-1, -1], [-2, -2]]
