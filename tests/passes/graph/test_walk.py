# SPDX-License-Identifier: Apache-2.0
"""Walks give each node once, in depth-first order, and stop where they are asked to."""

from __future__ import annotations

import operator

import torch
from torch import fx

from farskip_compile._compat.fakes import FakeTensorMode
from farskip_compile._compat.tensors import storage_identity
from farskip_compile.passes.graph.walk import fresh_like, spread, walk_back


def diamond() -> dict[str, fx.Node]:
    """x -> left, right -> total -> output; right also reads y."""
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    left = graph.call_function(operator.neg, (x,))
    right = graph.call_function(operator.mul, (x, y))
    total = graph.call_function(operator.add, (left, right))
    graph.output(total)
    return dict(zip(("x", "y", "left", "right", "total", "output"), graph.nodes, strict=True))


def names(nodes: dict[str, fx.Node], found) -> list[str]:
    name_of = {node: name for name, node in nodes.items()}
    return [name_of[node] for node in found]


def test_each_node_once_the_last_input_first():
    nodes = diamond()
    assert names(nodes, walk_back([nodes["total"]])) == ["total", "right", "y", "x", "left"]
    assert names(nodes, walk_back([nodes["left"], nodes["left"]])) == ["left", "x"]


def test_nothing_past_a_node_that_stops_it():
    nodes = diamond()
    border: dict[fx.Node, None] = {}
    stops = {nodes["right"], nodes["x"]}
    assert names(nodes, walk_back([nodes["output"]], stops.__contains__, border=border)) == ["output", "total", "left"]
    assert names(nodes, border) == ["right", "x"]
    assert not list(walk_back([nodes["x"]], stops.__contains__))


def test_other_inputs_than_the_arguments():
    nodes = diamond()
    first = {node: node.all_input_nodes[:1] for node in nodes.values()}
    assert names(nodes, walk_back([nodes["total"]], inputs=first.__getitem__)) == ["total", "left", "x"]


def test_a_walk_can_be_left_early():
    nodes = diamond()
    walk = walk_back([nodes["total"]])
    assert next(node for node in walk if node is nodes["right"])
    assert names(nodes, walk) == ["y", "x", "left"]


def test_a_property_spreads_forward_from_where_it_begins():
    nodes = diamond()
    found = spread(nodes.values(), lambda node: node is nodes["y"])
    assert found == {nodes[name] for name in ("y", "right", "total", "output")}
    without = [node for name, node in nodes.items() if name != "right"]
    assert spread(without, lambda node: node is nodes["y"]) == {nodes["y"]}
    assert spread(nodes.values(), lambda node: node is nodes["y"], lambda node: ()) == {nodes["y"]}


def test_a_fresh_tensor_has_memory_of_its_own():
    with FakeTensorMode():
        value = torch.empty(2, 3)
    fresh = fresh_like(value, torch.float64)
    assert (fresh.shape, fresh.dtype, fresh.fake_mode) == (value.shape, torch.float64, value.fake_mode)
    assert storage_identity(fresh) != storage_identity(value)
    assert fresh_like(torch.ones(2)).is_meta
