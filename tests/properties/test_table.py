# SPDX-License-Identifier: Apache-2.0
"""The connectivity table and its rewiring on graphs whose table is known by construction (`strategies.networks`)."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import fx

from farskip_compile.base.choices import ConnectivityName
from farskip_compile.errors import ConnectivityError, DenseModelError, LayerRangeError
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import Reading, read_table
from farskip_compile.passes.residual.table import Table
from farskip_compile.passes.rewire import rewire
from farskip_compile.passes.rewire.request import RewireRequest, ask
from farskip_compile.testing.strategies import capture, evaluate, networks
from farskip_compile.testing.strategies.network import GeneratedNetwork
from farskip_compile.testing.strategies.network_graph import GeneratedGraph
from farskip_compile.verify.rewiring import snapshot, verify
from tests.economy import examples


def terms_by_mark(reading: Reading, captured: GeneratedGraph) -> list[int]:
    """For each term of the table, the description's term: they share the node that was marked."""
    found = []
    for term, region in zip(reading.table.terms, reading.regions, strict=True):
        nodes = [node.name for node in region.owned] or [reading.stream.cores[term.index].name]
        marks = {captured.marks[name] for name in nodes if name in captured.marks}
        assert len(marks) == 1, (term.name, marks)
        found.append(marks.pop())
    return found


def read(captured: GeneratedGraph) -> tuple[Reading, list[int]]:
    normalize(captured.module)
    reading = read_table(captured.module.graph)
    assert reading is not None
    return reading, terms_by_mark(reading, captured)


def described_rows(table: Table, ours: list[int]) -> set[tuple[frozenset[int], frozenset[int], str]]:
    return {
        (frozenset(ours[i] for i in row.terms), frozenset(ours[i] for i in row.reads), str(row.kind))
        for row in table.rows
    }


def left_out_of_blocks(network: GeneratedNetwork, table: Table, ours: list[int], request: RewireRequest):
    """The request, by block of the description."""
    row_of = {ours[index]: row.name for row in table.rows for index in row.terms}
    wish = {name: frozenset(ours[i] for i in terms) for name, terms in request.left_out.items()}
    return {block.index: wish.get(row_of[block.first_term], frozenset()) for block in network.blocks}


def assert_same_bits(left, right) -> None:
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)


@settings(max_examples=examples(70))
@given(network=networks())
def test_table_is_the_one_of_the_construction(network: GeneratedNetwork) -> None:
    reading, ours = read(capture(network))
    table = reading.table
    assert sorted(ours) == list(range(len(network.term_kinds)))
    assert {ours[term.index]: str(term.kind) for term in table.terms} == {
        term: network.kind_of(term) for term in range(len(network.term_kinds))
    }
    assert described_rows(table, ours) == set(network.rows())
    assert set(reading.stream.terms_of(reading.stream.root)) == set(range(len(table.terms)))


@settings(max_examples=20)
@given(network=networks())
def test_normalising_changes_no_bit(network: GeneratedNetwork) -> None:
    captured = capture(network)
    before = captured.run(network)
    assert_same_bits(before, evaluate(network))
    normalize(captured.module)
    assert_same_bits(captured.run(network), before)
    written = [node for node in captured.module.graph.nodes if str(node.target) in ("add_",) or "iadd" in node.name]
    assert not written


def check_rewired(
    network: GeneratedNetwork, captured: GeneratedGraph, reading: Reading, ours: list[int], request: RewireRequest
):
    wish = left_out_of_blocks(network, reading.table, ours, request)
    wanted, before = request.wanted(reading.table), snapshot(reading)
    rewire(captured.module, reading, request)
    verify(captured.module, wanted, before)
    assert_same_bits(captured.run(network), evaluate(network, wish))


@settings(max_examples=examples(50))
@given(network=networks(standard=True), connectivity=st.sampled_from(get_args(ConnectivityName)[:-1]), data=st.data())
def test_named_connectivity(network: GeneratedNetwork, connectivity: str, data: st.DataObject) -> None:
    """The rule is written down once more here, in terms of the description."""
    captured = capture(network)
    reading, ours = read(captured)
    table = reading.table
    layers = len(network.blocks) // 2
    assert table.num_layers == layers
    chosen = None
    if data.draw(st.booleans()):
        first = data.draw(st.integers(0, layers - 1))
        chosen = (first, data.draw(st.integers(first, layers - 1)))
    wish = {}
    for layer in range(*((chosen[0], chosen[1] + 1) if chosen else (0, layers))):
        attention, feed_forward = network.blocks[2 * layer : 2 * layer + 2]
        if connectivity != "mlp" and layer > 0:
            before = network.blocks[2 * layer - 1]
            routed = frozenset(t for t in before.terms if network.term_kinds[t] == "routed")
            wish[attention.index] = frozenset(before.terms) if connectivity == "ladder" else routed
        if connectivity != "attention":
            is_moe = any(network.term_kinds[term] == "routed" for term in feed_forward.terms)
            lags = connectivity == "lag2" and layer > 0 and is_moe
            wish[feed_forward.index] = frozenset(attention.terms) | (routed if lags else frozenset())
    wish = {block: terms for block, terms in wish.items() if terms}
    if "routed" not in network.term_kinds and connectivity != "ladder":
        with pytest.raises(DenseModelError):
            ask(table, connectivity, chosen)
        return
    if not wish:
        with pytest.raises(LayerRangeError):
            ask(table, connectivity, chosen)
        return
    request = ask(table, connectivity, chosen)
    asked = left_out_of_blocks(network, table, ours, request)
    assert {block: terms for block, terms in asked.items() if terms} == wish
    check_rewired(network, captured, reading, ours, request)


@settings(max_examples=examples(70))
@given(network=networks(), data=st.data())
def test_any_table_of_the_user(network: GeneratedNetwork, data: st.DataObject) -> None:
    assume("routed" in network.term_kinds)
    captured = capture(network)
    reading, ours = read(captured)
    table = reading.table
    wish: dict[str, list[str]] = {}
    for row in table.rows:
        names = [table.terms[index].name for index in row.reads if index != 0 and ours[index] != 0]
        gone = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=3)) if names else []
        if gone and data.draw(st.booleans()):
            wish[row.name] = gone
    check_rewired(network, captured, reading, ours, ask(table, wish))


@settings(max_examples=20)
@given(network=networks(), data=st.data())
def test_a_table_can_not_ask_for_what_is_not_read(network: GeneratedNetwork, data: st.DataObject) -> None:
    assume("routed" in network.term_kinds)
    table = read(capture(network))[0].table
    row = data.draw(st.sampled_from(table.rows))
    unread = [term.name for term in table.terms if term.index not in row.reads]
    with pytest.raises(ConnectivityError):
        ask(table, {row.name: [data.draw(st.sampled_from(unread))]})
    with pytest.raises(ConnectivityError):
        ask(table, {row.name: table.names(row.reads)})
    with pytest.raises(ConnectivityError):
        ask(table, {"attention.99": ["e"]})


@settings(max_examples=20)
@given(network=networks())
def test_an_empty_request_leaves_the_code_alone(network: GeneratedNetwork) -> None:
    captured = capture(network)
    reading, _ = read(captured)
    captured.module.recompile()
    code = captured.module.code
    assert rewire(captured.module, reading, RewireRequest({})) == 0
    captured.module.recompile()
    assert captured.module.code == code


@settings(max_examples=20)
@given(network=networks(), seed=st.integers(0, 5))
def test_names_of_nodes_do_not_matter(network: GeneratedNetwork, seed: int) -> None:
    """Neither the node names nor the targets of parameters: nothing may hang on `mlp` or `experts`."""
    captured = capture(network)
    other = renamed(capture(network), seed)
    reading, ours = read(captured)
    other_reading, other_ours = read(other)
    table, other_table = reading.table, other_reading.table
    assert ours == other_ours
    assert [(t.name, t.kind, t.layer) for t in table.terms] == [(t.name, t.kind, t.layer) for t in other_table.terms]
    assert table.rows == other_table.rows


@settings(max_examples=20)
@given(network=networks(), data=st.data())
def test_order_of_operands_does_not_matter(network: GeneratedNetwork, data: st.DataObject) -> None:
    captured = capture(network)
    flipped = copy.deepcopy(captured)
    normalize(flipped.module)
    for node in flipped.module.graph.nodes:
        is_add = node.op != "placeholder" and "add" in node.name and len(node.args) == 2
        if is_add and all(isinstance(arg, fx.Node) for arg in node.args) and data.draw(st.booleans()):
            node.args = (node.args[1], node.args[0])
    reading, ours = read(captured)
    other_reading, other_ours = read(flipped)
    table, other_table = reading.table, other_reading.table
    assert described_rows(table, ours) == described_rows(other_table, other_ours)
    assert [(row.name, row.layer) for row in table.rows] == [(row.name, row.layer) for row in other_table.rows]


def renamed(captured: GeneratedGraph, seed: int) -> GeneratedGraph:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    marks: dict[str, int] = {}
    for position, node in enumerate(captured.module.graph.nodes):
        new = graph.node_copy(node, lambda arg: copies[arg])
        new.meta = node.meta
        if node.op != "output":
            new._rename(f"n{(position * 7919 + seed) % 100_003}")
        copies[node] = new
        if node.name in captured.marks:
            marks[new.name] = captured.marks[node.name]
    return GeneratedGraph(fx.GraphModule(captured.module, graph), marks, captured.states)
