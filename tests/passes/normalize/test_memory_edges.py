# SPDX-License-Identifier: Apache-2.0
"""The writes that a read depends on through memory, where they stay in place."""

from __future__ import annotations

import operator

import torch
from torch import fx

from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.normalize.single_assignment import mutation_edges
from tests.passes.normalize.test_single_assignment import check, targets


def test_cache_writes_stay_in_place_and_in_order():
    def f(cache, new, position):
        cache.index_copy_(0, position, new)
        first = cache.sum(0)
        cache.index_copy_(0, position + 1, new * 2)
        cache[2] += 1
        return first, cache.sum(0)

    def inputs():
        return torch.zeros(4, 3), torch.ones(1, 3), torch.tensor([0])

    module = check(f, *inputs())
    assert [name for name in targets(module) if name in ("index_copy_", "sum")] == [
        "index_copy_",
        "sum",
        "index_copy_",
        "sum",
    ]
    edges = mutation_edges(module.graph)
    sums = [node for node in module.graph.nodes if ops.op_name(node) == "sum"]
    written = [node for node in module.graph.nodes if effects.mutated_args(node)]
    assert edges[sums[0]] == (written[0],)
    assert edges[sums[1]] == (written[-1],)


def test_a_flag_is_no_write():
    """`requires_grad_` ends in an underscore and changes no data: reads around it may move."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(operator.mul, (x, 2))
    y.meta["example_value"] = torch.empty(2)
    flagged = graph.call_method("requires_grad_", (y,))
    graph.output(graph.call_function(operator.add, (flagged, y)))
    assert not effects.mutated_args(flagged)
    assert effects.mutated_args(graph.call_method("add_", (y, 1))) == [y]


def test_a_second_name_for_memory_from_outside_of_the_graph_shows_the_write_before_it():
    """A name of the model's memory is no value that was made after the write, wherever it stands."""
    graph, state = fx.Graph(), torch.empty(2)

    def named() -> fx.Node:
        node = graph.get_attr("state")
        node.meta["example_value"] = state
        return node

    write = graph.call_method("add_", (named(), 1))
    write.meta["example_value"] = state
    read = graph.call_function(operator.mul, (named(), 2))
    graph.output(read)
    assert mutation_edges(graph)[read] == (write,)
