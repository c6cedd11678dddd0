# SPDX-License-Identifier: Apache-2.0
"""Single assignment changes no bit, whatever is written where; and leaves alone what must stay in place."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.normalize.single_assignment import assign_once, mutation_edges
from farskip_compile.testing.strategies.network_graph import Recorder
from tests.graphs import dynamo


def targets(module: fx.GraphModule) -> list[str]:
    return [ops.op_name(node) for node in module.graph.nodes if node.op in ("call_function", "call_method")]


def writes(module: fx.GraphModule) -> list[str]:
    return [ops.op_name(node) for node in module.graph.nodes if effects.mutated_args(node)]


def check(function, *inputs: torch.Tensor) -> fx.GraphModule:
    """Same outputs and same writes to inputs, before and after."""
    plain, edited = [x.clone() for x in inputs], [x.clone() for x in inputs]
    expected = function(*plain)
    module, output = dynamo(function, *edited, edit=normalize)
    for a, b in zip(expected, output, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    for a, b in zip(plain, edited, strict=True):
        assert torch.equal(a, b)
    return module


x, s = torch.linspace(-2, 2, 6).view(2, 3), torch.linspace(1, 3, 6).view(2, 3)


def add_twice(x, s):
    y = x * 2
    y.add_(s)
    y.add_(1.0)
    return (y * 1,)


def other_row(x, s):
    y = x * 2
    one, other = y[0], y[1]
    one.add_(s[0])
    return one * 1, other * 1


def operators(x, s):
    y = x * 2
    y += s
    y *= 3
    y -= 1
    y /= 2
    return (y * 1,)


def logical_operators(x, s):
    mask = x > 0
    both = mask & (s > 1.5)  # operator.and_, which writes nothing
    either = mask | both
    either &= s > 1.2
    return mask * 1, both * 1, either * 1


def through_a_view(x, s):
    y = x * 2
    y.view(-1).add_(s.view(-1))
    return (y * 1,)


def two_views(x, s):
    y = x * 2
    v = y.view(-1)
    y.add_(s)
    v.mul_(3.0)
    y.add_(2.0)
    return v * 1, y * 1


def result_of_the_write(x, s):
    y = x * 2
    w = y.add_(s)
    z = w.mul_(s)
    return w * 1, z * 1, y * 1


def copy(x, s):
    y = torch.empty_like(x)
    y.copy_(s)
    return (y * 1,)


def half_plus_float(x, s):
    y = (x * 2).to(torch.bfloat16)
    y += s
    z = y + 1
    y.mul_(s)
    return y * 1, z * 1


def float_plus_half(x, s):
    y = x * 2
    y += s.to(torch.bfloat16)
    return (y * 1,)


def number(x, s):
    y = (x * 2).to(torch.float16)
    y += 0.1
    return (y * 1,)


def relu(x, s):
    y = x * 2
    z = F.relu(y, inplace=True)
    return y * 1, z * 1


def told_by_position(x, s):
    y = x * 2
    z = F.leaky_relu(y, 0.5, True)
    return y * 1, z * 1


def no_op_cast_is_the_same_memory(x, s):
    y = x * 2
    z = y.to(torch.float32)
    z += s
    return y * 1, z * 1


@pytest.mark.parametrize(
    "function",
    [
        add_twice,
        operators,
        logical_operators,
        through_a_view,
        two_views,
        result_of_the_write,
        copy,
        half_plus_float,
        float_plus_half,
        number,
        relu,
        told_by_position,
        no_op_cast_is_the_same_memory,
    ],
)
def test_writes_to_intermediates_become_out_of_place(function):
    raw, _ = dynamo(function, x.clone(), s.clone())
    assert writes(raw)
    assert writes(check(function, x, s)) == []


def row_of_the_base(x, s):
    y = x * 2
    y[0].add_(1.0)
    return (y * 1,)


def row_kept(x, s):
    y = x * 2
    z = y[0]
    z.add_(1.0)
    y.mul_(2.0)
    return y * 1, z * 1


def setitem(x, s):
    y = x * 2
    y[0] = 5.0
    z = y + 1
    y[:, 1] = s[:, 0]
    return y * 1, z * 1


def broadcast_copy(x, s):
    y = x * 2
    y.copy_(s[0])
    return (y * 1,)


@torch.library.custom_op("farskip_tests::halve_and_count", mutates_args=("y",))
def halve_and_count(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    y.mul_(0.5)
    return (y > x).to(y.dtype)


@halve_and_count.register_fake
def _(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(y)


def something_else_is_returned(x, s):
    y = x * 2
    v = y.view(-1)
    more = halve_and_count(s, y)
    return y * 1, v * 1, more * 1


def a_row_is_read_later(x, s):
    y = x * 2
    row = y[0]
    more = halve_and_count(s, y)
    return row * 1, y * 1, more * 1


def called_as_a_packet(x, s):
    y = x * 2
    more = torch.ops.farskip_tests.halve_and_count(s, y=y)
    return y * 1, more * 1


def a_list_is_written(x, s):
    y, z = x * 2, s * 3
    torch._foreach_add_([y, z], 1.0)
    return y * 1, z * 1


def copy_then_setitem(x, s):
    t = s * 1
    y = torch.empty_like(x)
    y.copy_(t)
    y[0] = 5.0
    return y * 1, t * 1


def copy_of_an_input_then_setitem(x, s):
    y = torch.empty_like(x)
    y.copy_(s)
    y[0] = 5.0
    return y * 1, s * 1


def write_to_the_source_of_a_copy(x, s):
    y = torch.empty_like(x)
    y.copy_(s)
    s.add_(1.0)
    return y * 1, s * 1


@pytest.mark.parametrize(
    "function",
    [
        other_row,
        row_of_the_base,
        row_kept,
        setitem,
        broadcast_copy,
        something_else_is_returned,
        a_row_is_read_later,
        called_as_a_packet,
        a_list_is_written,
        copy_then_setitem,
        copy_of_an_input_then_setitem,
        write_to_the_source_of_a_copy,
    ],
)
def test_writes_without_an_out_of_place_form_stay(function):
    """And whatever reads the memory later is known to come after them."""
    module = check(function, x, s)
    assert writes(module)
    writes_before = mutation_edges(module.graph)
    last = {effects.storage(base): node for node in module.graph.nodes for base in effects.mutated_args(node)}
    order = {node: place for place, node in enumerate(module.graph.nodes)}
    for node in module.graph.nodes:
        for arg in node.all_input_nodes if node.op == "call_function" else ():
            write = last.get(effects.storage(arg))
            if write is not None and order[write] < order[node]:
                assert write in walk_back([node]) or write in writes_before[node]


def test_llama4_routed_part_gets_a_name():
    """`out.add_(routed)` has no users in Dynamo's graph: later nodes go on reading `out`."""

    def f(x, s):
        out = torch.tanh(x)
        out.add_(s * 2)
        return (x + out,)

    module, _ = dynamo(f, x, s)
    (write,) = (node for node in module.graph.nodes if ops.op_name(node) == "add_")
    assert not write.users
    edited = check(f, x, s)
    (last,) = (node for node in edited.graph.nodes if node.op == "output")
    assert {ops.op_name(arg) for arg in last.all_input_nodes[0].all_input_nodes if arg.op != "placeholder"} == {"add"}


def test_random_writes_stay():
    def f(x):
        y = x * 2
        y.bernoulli_(0.5)
        z = y + 1
        return y * 1, F.dropout(z, 0.5, True, True) * 1

    torch.manual_seed(0)
    expected = f(x)
    torch.manual_seed(0)
    module, output = dynamo(f, x, edit=normalize)
    assert torch.equal(expected[0], output[0])
    assert torch.equal(expected[1], output[1])
    assert "bernoulli_" in targets(module)


def test_overloads_of_aten():
    recorder = Recorder(attributes=False)
    a = recorder.call(operator.mul, recorder.placeholder("x", x), 2.0)
    recorder.call(torch.ops.aten.add_.Tensor, a, recorder.placeholder("s", s), alpha=2)
    recorder.call(torch.ops.aten.mul_.Scalar, a, 3.0)
    recorder.graph.output((a,))
    module = fx.GraphModule(nn.Module(), recorder.graph)
    expected = module(x, s)
    assert assign_once(module.graph) == 2
    module.recompile()
    assert torch.equal(module(x, s)[0], expected[0])
    assert writes(module) == []


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Steps (what, which value, which other value) on two inputs and an intermediate."""
    steps = ["view", "row", "add_", "mul_", "narrow_add_", "copy_", "iadd", "setitem", "rows", "relu", "relu_", "to"]
    count = draw(st.integers(2, 9))
    return [
        (draw(st.sampled_from([*steps, "mul", "add"])), draw(st.integers(0, 2 + i)), draw(st.integers(0, 2 + i)))
        for i in range(count)
    ]


def build(program: list[tuple[str, int, int]]) -> fx.GraphModule:
    recorder = Recorder(attributes=False)
    values = [recorder.placeholder(name, torch.zeros(2, 3)) for name in "xs"]
    values.append(recorder.call(operator.mul, values[0], 2.0))
    for what, first, second in program:
        a, b = values[first], values[second]
        shape = tuple(a.meta["example_value"].shape)
        same = shape == tuple(b.meta["example_value"].shape)
        other = b if same else 3.0
        if what == "view":
            made = recorder.call("view", a, *((2, 3) if shape == (6,) else (-1,)))
        elif what == "row":
            made = recorder.call(operator.getitem, a, 0 if len(shape) == 2 else slice(0, 3))
        elif what == "narrow_add_":
            made = recorder.call("add_", a, recorder.call("to", other, torch.float16) if same else 1.0)
        elif what == "copy_":
            made = recorder.call("copy_", a, b) if same else recorder.call("fill_", a, 2.0)
        elif what in ("setitem", "rows"):
            recorder.call(operator.setitem, a, 0 if what == "setitem" else (slice(0, 1),), 5.0)
            made = a
        elif what == "relu":
            made = recorder.call(F.relu, a, inplace=True)
        elif what == "to":
            made = recorder.call("to", a, torch.float32)
        elif what == "relu_":
            made = recorder.call(torch.relu_, a)
        elif what in ("iadd", "mul", "add"):
            made = recorder.call(getattr(operator, what), a, other)
        else:
            made = recorder.call(what, a, other)
        values.append(made)
    recorder.graph.output(tuple(recorder.call(operator.mul, value, 1.0) for value in values))
    return fx.GraphModule(nn.Module(), recorder.graph)


@settings(max_examples=150)
@given(program=programs())
def test_any_program_of_writes_and_views(program):
    module = build(program)
    before, after = (x.clone(), s.clone()), (x.clone(), s.clone())
    expected = module(*before)
    normalize(module)
    module.recompile()
    for a, b in zip((*expected, *before), (*module(*after), *after), strict=True):
        assert torch.equal(a, b)


def test_writes_to_tensors_without_storage():
    """Predictions are of models on "meta", a device without autocast."""
    _, (output,) = dynamo(add_twice, x.to("meta"), s.to("meta"), edit=normalize)
    assert output.is_meta
    assert output.shape == x.shape
