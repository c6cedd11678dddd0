# SPDX-License-Identifier: Apache-2.0
"""Numbers for symbolic sizes: example values, balanced routing, ranges, and the fallback."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from farskip_compile._compat.costs import untold
from farskip_compile.costs.operators import op_cost
from farskip_compile.costs.sizes import SizeHints
from tests.costs.traced import shape_env, trace

all_to_all = torch.ops._c10d_functional.all_to_all_single.default


class Exchange:
    """A graph of one all-to-all whose splits are unbacked symbols, and optionally what the program asserts of them."""

    def __init__(self, rows: int | None, ranks: int, experts: int, *, static_out: int | None = None) -> None:
        self.env = ShapeEnv()
        self.graph = fx.Graph()
        sent = [[self.env.create_unbacked_symint() for _ in range(experts)] for _ in range(ranks)]
        received = [[self.env.create_unbacked_symint() for _ in range(experts)] for _ in range(ranks)]
        self.symbols = {name: [s for row in part for s in row] for name, part in (("sent", sent), ("got", received))}
        taken, given = [sum(row) for row in sent], [sum(row) for row in received]
        with FakeTensorMode(shape_env=self.env):
            x = torch.empty(rows if rows is not None else sum(taken), 4)
            y = torch.empty(static_out if static_out is not None else sum(given), 4)
        source = self._node("x", x)
        inputs = [self._node(f"in{i}", length) for i, length in enumerate(taken)]
        outputs = [self._node(f"out{i}", length) for i, length in enumerate(given)]
        call = self.graph.call_function(all_to_all, (source, outputs, inputs, "0"))
        call.meta["val"] = y
        self.graph.output(call)

    def _node(self, name: str, value: object) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta["val"] = value
        return node

    def numbers(self, **kwargs: Any) -> dict[str, list[int]]:
        size = SizeHints(self.graph, **kwargs)
        return {name: [size(symbol) for symbol in part] for name, part in self.symbols.items()}


@settings(max_examples=20)
@given(st.integers(0, 200), st.integers(1, 4), st.integers(1, 3))
def test_routing_is_taken_as_balanced(rows: int, ranks: int, experts: int) -> None:
    exchange = Exchange(rows, ranks, experts)
    numbers = exchange.numbers()
    for part in numbers.values():  # all rows are somewhere, and no expert has two more than another
        assert sum(part) == rows
        assert max(part) - min(part) <= 1
    # the same numbers the other way round: only what comes out is known, as in the combine of a forward
    assert Exchange(None, ranks, experts, static_out=rows).numbers() == numbers


@settings(max_examples=20)
@given(st.integers(0, 200), st.integers(1, 4), st.integers(1, 3), st.sampled_from([1.0, 1.5, 2.0]))
def test_the_fullest_rank_has_more_rows_for_its_experts(rows: int, ranks: int, experts: int, imbalance: float) -> None:
    numbers = Exchange(rows, ranks, experts).numbers(imbalance=imbalance)
    assert (sum(numbers["sent"]), sum(numbers["got"])) == (rows, round(imbalance * rows)), "a dispatch"
    numbers = Exchange(None, ranks, experts, static_out=rows).numbers(imbalance=imbalance)
    assert (sum(numbers["sent"]), sum(numbers["got"])) == (round(imbalance * rows), rows), "a combine"


def test_an_asserted_equality_helps_where_neither_side_is_known() -> None:
    exchange = Exchange(None, 2, 2)
    assert exchange.numbers(fallback=80) == {"sent": [20] * 4, "got": [20] * 4}  # nothing known: the fallback, shared
    torch._check(sum(exchange.symbols["sent"]) == 12)
    assert exchange.numbers(fallback=80) == {"sent": [3] * 4, "got": [3] * 4}


def test_a_hint_of_the_user_wins() -> None:
    exchange = Exchange(10, 2, 1)
    exchange.env.var_to_hint_override[exchange.symbols["sent"][0].node.expr] = 7
    assert exchange.numbers() == {"sent": [7, 3], "got": [5, 5]}


def test_inductor_is_told_the_estimates_of_a_graph_but_not_against_the_user() -> None:
    exchange = Exchange(10, 2, 1)
    free = exchange.env.create_unbacked_symint().node.expr
    sent, got = ([symbol.node.expr for symbol in exchange.symbols[name]] for name in ("sent", "got"))
    exchange.env.var_to_hint_override[sent[0]] = 7
    SizeHints(exchange.graph, imbalance=2.0).tell_inductor()
    hints = exchange.env.var_to_hint_override
    assert [hints[symbol] for symbol in (*sent, *got)] == [7, 3, 10, 10]
    assert free not in hints, "no size of this graph"
    with untold(exchange.env):
        assert hints == {sent[0]: 7}, "the user's alone"
    assert len(hints) == 4
    SizeHints(exchange.graph, imbalance=1.0).tell_inductor()
    with untold(exchange.env):
        assert hints == {sent[0]: 7}, "also if they are told once more"
    static = trace(lambda x: x + 1, torch.zeros(3))
    SizeHints(static).tell_inductor()  # nothing to tell


def test_other_unknown_sizes_keep_their_range() -> None:
    env = ShapeEnv()
    free, small = env.create_unbacked_symint(), env.create_unbacked_symint()
    torch._check(small <= 9)
    with FakeTensorMode(shape_env=env):
        value = torch.empty(free, small)
    graph = fx.Graph()
    graph.placeholder("x").meta["val"] = value
    size = SizeHints(graph, fallback=100)
    assert [size(free), size(small), size(free * 2 + small), size(3)] == [100, 9, 209, 3]


def test_sizes_of_inputs_have_their_example_values_and_get_no_guard() -> None:
    graph = trace(lambda x, w: (x @ w)[1:], torch.zeros(6, 5), torch.zeros(5, 7), dynamic=True)
    env = shape_env(graph)
    before = list(env.guards), dict(env.replacements)
    size = SizeHints(graph)
    shapes = [[size(n) for n in node.meta["val"].shape] for node in graph.nodes if node.op == "call_function"]
    assert shapes == [[6, 7], [5, 7]]
    symbol = next(node.meta["val"] for node in graph.nodes).shape[0].node.expr
    assert size(symbol * 2 + 1) == 13  # Inductor's kernels have expressions, not SymInts
    assert size(sympy.Integer(4)) == 4
    assert (list(env.guards), dict(env.replacements)) == before


def test_bytes_of_a_node_are_the_same_however_often_they_are_asked_for() -> None:
    graph = trace(lambda x: torch.sort(x.T)[0] + x.sum(0)[:, None], torch.ones(3, 5))
    size = SizeHints(graph)
    sort = next(node for node in graph.nodes if "sort" in node.name)
    assert [size.bytes_of(sort) for _ in range(2)] == [15 * 4 + 15 * 8] * 2, "values and indices"
    for node in graph.nodes:
        if node.op == "call_function":
            assert op_cost(node, size, fused=True) == op_cost(node, int, fused=True)
            assert op_cost(node, size) == op_cost(node, int)
