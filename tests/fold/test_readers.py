# SPDX-License-Identifier: Apache-2.0
"""Which parameters read a value, or write a term, linearly: whatever the operator is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from farskip_compile.healing.fold.basis import SCALES, Basis, alike
from farskip_compile.healing.fold.lab import Lab
from farskip_compile.healing.fold.multiply import multiply
from farskip_compile.healing.fold.readers import find_readers
from farskip_compile.healing.fold.tape import Course
from farskip_compile.healing.fold.writers import find_writers

WIDTH, OUT, EXPERTS, TOKENS = 6, 4, 3, 10
Function = Callable[..., torch.Tensor]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 40),
    st.lists(st.integers(1, 4), min_size=0, max_size=2),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.integers(0, 2),
)
def test_a_change_of_basis_is_a_matrix_and_exact(size, front, dtype, place):
    basis = Basis.of_size(size, torch.device("cpu"))
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix[basis.source, torch.arange(size)] = basis.scale.double()
    shape = [*front]
    axis = min(place, len(shape))
    shape.insert(axis, size)
    value = torch.randn(shape, dtype=torch.float64).to(dtype)
    moved = value.double().movedim(axis, -1)
    assert torch.equal(basis.changed(value, axis).double(), (moved @ matrix).movedim(-1, axis))
    assert torch.equal(basis.folded(value, axis).double(), (moved @ matrix.T).movedim(-1, axis))
    assert {abs(one) for one in basis.scale.tolist()} <= {abs(one) for one in SCALES}


def graph_of(function: Function, inputs: dict[str, torch.Tensor], width: int = WIDTH) -> tuple[Lab, dict[str, fx.Node]]:
    """The graph that Dynamo makes of a function, run on its inputs; by name the placeholders, and the last node."""
    found: list[fx.GraphModule] = []

    def receive(module: fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        found.append(module)
        return module.forward

    torch._dynamo.reset()
    torch.compile(function, backend=receive, fullgraph=True, dynamic=False)(*inputs.values())
    course = Course(found[0])
    places = [node for node in course.nodes if node.op == "placeholder"]
    values = []
    by_name = {}
    for node in places:
        name = next(name for name in inputs if node.name.strip("l_").lower().rstrip("_") == name)
        by_name[name] = node
        values.append(inputs[name])
    lab = Lab(course, values, [node for name, node in by_name.items() if name.startswith("w")], lambda one: one)
    lab.advance(len(course.nodes) - 2)
    by_name["result"] = course.nodes[-1].args[0][0]  # type: ignore[index]
    return lab, by_name


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def picked(x: torch.Tensor, w: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    choice = scores.argmax(-1)
    return torch.einsum("th,toh->to", x, w[choice])


def grouped(x: torch.Tensor, w: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    choice = scores.argmax(-1)
    order = choice.argsort(stable=True)
    rows = x[order]
    out = torch.stack([rows @ w[expert].T for expert in range(EXPERTS)])
    return out[choice[order], torch.arange(len(x))]


def buffered(x: torch.Tensor, w: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    choice = scores.argmax(-1)
    buffer = x.new_zeros(EXPERTS, len(x), x.shape[-1])
    buffer[choice, torch.arange(len(x))] = x
    return torch.bmm(buffer, w.transpose(1, 2))


def scaled(x: torch.Tensor, w: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return F.linear(x * scores[:, :1], w)


LINEAR: dict[str, tuple[Function, tuple[int, ...], int]] = {
    "linear": (lambda x, w, scores: F.linear(x, w), (OUT, WIDTH), 1),
    "square": (lambda x, w, scores: F.linear(x, w), (WIDTH, WIDTH), 1),
    "matmul": (lambda x, w, scores: x @ w, (WIDTH, WIDTH), 0),
    "cast": (lambda x, w, scores: F.linear(x.float(), w.float()), (OUT, WIDTH), 1),
    "einsum": (lambda x, w, scores: torch.einsum("th,eho->teo", x, w), (EXPERTS, WIDTH, OUT), 1),
    "picked": (picked, (EXPERTS, OUT, WIDTH), 2),
    "grouped": (grouped, (EXPERTS, OUT, WIDTH), 2),
    "buffered": (buffered, (EXPERTS, OUT, WIDTH), 2),
    "scaled": (scaled, (OUT, WIDTH), 1),
    "split": (lambda x, w, scores: torch.cat([one @ w for one in x.view(2, -1, WIDTH).unbind()]), (WIDTH, OUT), 0),
    "activated": (lambda x, w, scores: F.silu(F.linear(x, w)), (OUT, WIDTH), 1),
    "convolved": (lambda x, w, scores: F.conv1d(x.T[None], w), (OUT, WIDTH, 1), 1),
}


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_reader(name):
    function, shape, axis = LINEAR[name]
    inputs = {"x": numbers(TOKENS, WIDTH), "w": numbers(*shape, seed=1), "scores": numbers(TOKENS, EXPERTS, seed=5)}
    lab, nodes = graph_of(function, inputs)
    region = [node for node in lab.course.nodes if node.op != "placeholder" and node.op != "output"]
    found = find_readers(lab, nodes["x"], region, [nodes["w"]])
    assert {(reader.parameter.name, reader.axis) for reader in found.readers} == {(nodes["w"].name, axis)}
    assert not found.others
    # the law that the experiment stands for: any matrix may be moved into the weight
    matrix = numbers(WIDTH, WIDTH, seed=2)
    wanted = function(inputs["x"] @ matrix, inputs["w"], inputs["scores"])
    weight = inputs["w"].clone()
    multiply(weight, axis, matrix)
    tolerance = 1e-5 if name == "cast" else 1e-12
    assert torch.allclose(function(inputs["x"], weight, inputs["scores"]), wanted, rtol=tolerance, atol=tolerance)


OTHERWISE: dict[str, Function] = {
    "norm": lambda x, w: F.linear(F.rms_norm(x, (WIDTH,)), w),
    "activation first": lambda x, w: F.linear(x.relu(), w),
    "absolute": lambda x, w: F.linear(x.abs(), w),
    "per feature": lambda x, w: F.linear(x * torch.arange(1.0, WIDTH + 1.0), w),
    "in part": lambda x, w: F.linear(x[:, : WIDTH // 2], w[:, : WIDTH // 2]),
    "squared weight": lambda x, w: F.linear(x, w * w),
    "a weight less one": lambda x, w: F.linear(x, w - 1.0),
    "gated by itself": lambda x, w: F.linear(x, w) * x.square().mean(),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_is_not_linear_is_no_reader(name):
    lab, nodes = graph_of(OTHERWISE[name], {"x": numbers(TOKENS, WIDTH), "w": numbers(OUT, WIDTH, seed=1)})
    region = [node for node in lab.course.nodes if node.op != "placeholder" and node.op != "output"]
    found = find_readers(lab, nodes["x"], region, [nodes["w"]])
    if name == "gated by itself":  # the product reads it linearly, its second use does not
        assert [reader.node.name for reader in found.readers] == ["linear"]
    else:
        assert not found.readers
    assert found.others


WRITERS: dict[str, tuple[Function, dict[str, tuple[int, ...]], dict[str, int]]] = {
    "linear": (lambda x, w: F.linear(x, w), {"w": (OUT, WIDTH)}, {"w": 0}),
    "with a bias": (lambda x, w, w1: F.linear(x, w, w1), {"w": (OUT, WIDTH), "w1": (OUT,)}, {"w": 0, "w1": 0}),
    "a sum": (lambda x, w, w1: x @ w + x.relu() @ w1, {"w": (WIDTH, OUT), "w1": (WIDTH, OUT)}, {"w": 1, "w1": 1}),
    "gated": (lambda x, w: 0.5 * x[:, :1] * (x @ w), {"w": (WIDTH, OUT)}, {"w": 1}),
    "two products": (lambda x, w, w1: (x @ w) @ w1, {"w": (WIDTH, OUT), "w1": (OUT, OUT)}, {"w1": 1}),
    "with a part apart": (lambda x, w: x @ w + x[:, :OUT], {"w": (WIDTH, OUT)}, {}),
    "normalised": (lambda x, w: F.rms_norm(x @ w, (OUT,)), {"w": (WIDTH, OUT)}, {}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_writers(name):
    function, shapes, axes = WRITERS[name]
    weights = {key: numbers(*shape, seed=place + 1) for place, (key, shape) in enumerate(shapes.items())}
    x = numbers(TOKENS, WIDTH)
    lab, nodes = graph_of(function, {"x": x, **weights})
    region = [node for node in lab.course.nodes if node.op != "placeholder" and node.op != "output"]
    found = find_writers(lab, nodes["result"], region, [nodes[key] for key in weights])
    assert {(one.parameter, one.axis) for one in found} == {(nodes[key], axis) for key, axis in axes.items()}
    if found:
        matrix, now = numbers(OUT, OUT, seed=7), function(x, *weights.values())
        for key, axis in axes.items():
            multiply(weights[key], axis, matrix.T)
        assert torch.allclose(function(x, *weights.values()), now @ matrix, rtol=1e-12, atol=1e-12)


def test_what_an_operator_writes_to_is_as_it_was_before():
    inputs = {
        "x": numbers(TOKENS, WIDTH),
        "w": numbers(EXPERTS, OUT, WIDTH),
        "scores": numbers(TOKENS, EXPERTS, seed=5),
    }
    lab, nodes = graph_of(buffered, inputs)
    before = {node: value.clone() for node, value in lab.values.items() if isinstance(value, torch.Tensor)}
    region = [node for node in lab.course.nodes if node.op != "placeholder" and node.op != "output"]
    find_readers(lab, nodes["x"], region, [nodes["w"]])
    assert all(torch.equal(lab.values[node], value) for node, value in before.items())


def test_alike():
    one = torch.tensor([1.0, -300.0])
    assert alike(one, one + 1e-3)
    assert not alike(one, one + 1.0)
    assert not alike(one, one[:1])
    assert alike(torch.zeros(0), torch.zeros(0))


def test_multiply_in_parts(monkeypatch):
    monkeypatch.setattr("farskip_compile.healing.fold.multiply.PART", 40)
    for shape, axis in (((5, 4), 1), ((4, 5), 0), ((3, 4, 6), 1), ((2, 3, 4, 4), 3), ((4,), 0)):
        value, matrix = numbers(*shape), numbers(4, 4, seed=3)
        wanted = (value.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
        parameter = nn.Parameter(value.clone())
        multiply(parameter, axis, matrix)
        assert torch.allclose(parameter, wanted, rtol=1e-12, atol=1e-12)


def test_an_experiment_leaves_no_trace():
    scores = numbers(TOKENS, EXPERTS, seed=5)
    lab, nodes = graph_of(buffered, {"x": numbers(TOKENS, WIDTH), "w": numbers(EXPERTS, OUT, WIDTH), "scores": scores})
    region = [node for node in lab.course.nodes if node.op != "placeholder" and node.op != "output"]
    once, twice = (find_readers(lab, nodes["x"], region, [nodes["w"]]) for _ in range(2))
    assert once == twice


def test_what_reads_the_shape_alone_is_no_reader_of_any_kind():
    def shaped(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w) * torch.ones_like(x)[:, :OUT]

    lab, nodes = graph_of(shaped, {"x": numbers(TOKENS, WIDTH), "w": numbers(OUT, WIDTH, seed=1)})
    region = [node for node in lab.course.nodes if node.op != "placeholder" and node.op != "output"]
    found = find_readers(lab, nodes["x"], region, [nodes["w"]])
    assert [reader.node.name for reader in found.readers] == ["linear"]
    assert not found.others


def test_within_a_transformation_nothing_is_tried():
    def mapped(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w) + torch.vmap(lambda row: row @ w.T)(x)

    lab, nodes = graph_of(mapped, {"x": numbers(TOKENS, WIDTH), "w": numbers(OUT, WIDTH, seed=1)})
    region = [node for node in lab.course.nodes if node.op != "placeholder" and node.op != "output"]
    found = find_readers(lab, nodes["x"], region, [nodes["w"]])
    assert [reader.node.name for reader in found.readers] == ["linear"]
    assert found.others  # so the weight, which is used there too, is left alone
