# SPDX-License-Identifier: Apache-2.0
"""A connectivity by table, asked of layers compiled one by one: what the whole graph and a sum by hand give."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import farskip_compile
from farskip_compile.errors import ConnectivityError
from farskip_compile.passes.rewire.told import heard, heard_later, told, told_later
from tests.compare import run_with_gradients
from tests.graphs import Layer, MoE, Stack, ids

LAYERS = 4
TABLES: dict[str, Mapping[str, Sequence[str]]] = {
    "full": {f"attention.{k}": [f"r{k - 1}"] for k in range(1, 4)} | {f"moe.{k}": [f"a{k}"] for k in range(4)},
    "one row": {"attention.2": ["r1"]},
    "two back": {"attention.3": ["r1", "r2"], "moe.2": ["r1", "a2"]},
    "far back": {"moe.3": ["r0"], "attention.1": ["r0"]},
    "shared and routed": {"attention.2": ["s1", "r1"], "moe.3": ["a3", "s2"]},
    "of the first layer": {"moe.0": ["a0"]},
}


def model() -> Stack:
    return Stack(lambda: Layer(MoE()), layers=LAYERS)


def by_hand(stack: Stack, table: Mapping[str, Sequence[str]]) -> torch.Tensor:
    terms = {"e": stack.embedding(ids())}

    def read(row: str) -> torch.Tensor:
        return sum(value for name, value in terms.items() if name not in table.get(row, ()))  # type: ignore[return-value]

    for number, layer in enumerate(stack.layers):
        terms[f"a{number}"] = layer.attention(layer.norm1(read(f"attention.{number}")))
        h = layer.norm2(read(f"moe.{number}"))
        terms[f"r{number}"], terms[f"s{number}"] = layer.feed_forward.routed(h), layer.feed_forward.shared(h)
    return stack.head(stack.norm(read("end")))


@pytest.mark.parametrize("name", TABLES)
def test_equals_the_whole_graph_and_the_sum_by_hand(name: str) -> None:
    table, stack = TABLES[name], model()
    twin = copy.deepcopy(stack)
    options = {"inner": "eager", "connectivity": table}
    whole = torch.compile(twin, backend="farskip", fullgraph=True, options=options)
    expected, wanted = run_with_gradients(whole, twin, ids())
    (report,) = farskip_compile.reports().compiles
    torch.compiler.reset()
    regional = farskip_compile.regional(stack, table, inner="eager")
    output, gradients = run_with_gradients(stack, stack, ids())
    assert torch.equal(output, expected)
    for parameter, gradient in gradients.items():  # of several readers, in another order
        torch.testing.assert_close(gradient, wanted[parameter], rtol=1e-12, atol=1e-12)
    assert regional.table.rows == report.table.rows
    torch.testing.assert_close(output, by_hand(twin, table), rtol=1e-12, atol=1e-12)


def test_layers_that_are_told_the_same_share_a_graph() -> None:
    stack = model()
    farskip_compile.regional(stack, TABLES["full"], inner="eager")
    with torch.no_grad():
        stack(ids())
    assert len(farskip_compile.reports().compiles) == 3  # first, others, last


def test_a_loop_without_options_uses_the_table_that_layers_were_told() -> None:
    stack = model()
    farskip_compile.regional(stack, TABLES["two back"], compile=False, inner="eager")
    for layer in stack.layers:
        layer.compile(backend="farskip", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(stack(ids()), by_hand(stack, TABLES["two back"]), rtol=1e-12, atol=1e-12)


def test_a_table_that_layers_were_not_told_is_refused() -> None:
    stack = model()
    farskip_compile.regional(stack, compile=False)
    for layer in stack.layers:
        layer.compile(backend="farskip", fullgraph=True, options={"inner": "eager", "connectivity": TABLES["full"]})
    with torch.no_grad(), pytest.raises(ConnectivityError, match="prepared without one"):
        stack(ids())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"attention.1": ["a9"]}, "a8"),  # numbers are those of the layer
        ({"moe.7": ["a0"]}, "does not have"),
        ({"the attention": ["r0"]}, "not a sub-block"),
        ({"moe.1": ["e"]}, "not a sub-block or a term"),
    ],
)
def test_names_that_are_not_there(table: Mapping[str, Sequence[str]], message: str) -> None:
    def run() -> None:
        stack = model()
        farskip_compile.regional(stack, table, inner="eager")
        stack(ids())

    with torch.no_grad(), pytest.raises(ConnectivityError, match=message):
        run()


def test_a_manifest_with_a_range_or_a_table() -> None:
    for options in ({"connectivity": "full", "layers": (1, 2)}, {"connectivity": TABLES["two back"]}):
        stack: Any = model()
        described = farskip_compile.describe(stack, ids(), **options)
        twin = copy.deepcopy(stack)
        whole = torch.compile(twin, backend="farskip", fullgraph=True, options={"inner": "eager", **options})
        with torch.no_grad():
            expected = whole(ids())
            torch.compiler.reset()
            farskip_compile.regional(stack, manifest=described, inner="eager")
            assert torch.equal(stack(ids()), expected)


names = st.builds(lambda letter, layer: f"{letter}{layer}", st.sampled_from("ars"), st.integers(0, 5))
rows = st.builds(lambda word, layer: f"{word}.{layer}", st.sampled_from(["attention", "moe"]), st.integers(0, 6))


@given(st.dictionaries(rows, st.lists(names, unique=True, max_size=3), max_size=6))
def test_what_layers_are_told_is_the_table(table: Mapping[str, Sequence[str]]) -> None:
    """Numbers are moved; nothing is lost, and what a layer leaves out has left every earlier layer apart."""

    def moved(name: str, by: int) -> str:
        stem = name.rstrip("-0123456789")
        return f"{stem}{int(name[len(stem) :]) + by}"

    back = {
        moved(row, layer): [moved(term, layer) for term in terms]
        for layer in range(7)
        for row, terms in heard(told(table, layer)).items()
    }
    assert back == {row: terms for row, terms in table.items() if terms}
    for row, terms in table.items():
        for layer in range(int(row.rpartition(".")[2])):
            kept = {moved(term, layer) for term in heard_later(told_later(table, layer))}
            assert {term for term in terms if int(term[1:]) <= layer} <= kept
    assert json.loads(told_later(table, 6)) == []
