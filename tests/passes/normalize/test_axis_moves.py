# SPDX-License-Identifier: Apache-2.0
"""A chunk and a cat around a collective become a move of axes: same bits, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch.testing._internal.distributed.fake_pg import FakeStore

from farskip_compile._compat import collectives
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.normalize.axis_moves import move_axes
from tests.graphs import dynamo


@pytest.fixture(autouse=True)
def two_fake_ranks():
    """A group that sends nothing: a gather leaves its output as it was, so only what is around it is looked at."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def moved(function, value, dynamic=None):
    count = []
    module, _ = dynamo(function, value, edit=lambda module: count.append(move_axes(module.graph)), dynamic=dynamic)
    module.graph.lint()
    return module, count[0]


def names(module):
    return {ops.op_name(node) for node in module.graph.nodes}


def without_collectives(module):
    """The same graph, in which every rank but this one is silent: a reduce-scatter gives the rank's own first half."""
    for node in list(module.graph.nodes):
        if comms.is_collective(node):
            with module.graph.inserting_before(node):
                if "scatter" in node.name or node.args[1:2] == ("sum",):
                    new = module.graph.call_function(lambda x: x.chunk(2)[0].clone(), (node.args[0],))
                else:
                    new = module.graph.call_function(lambda x: torch.cat([x, x + 1]), (node.args[0],))
            node.replace_all_uses_with(new)
            module.graph.erase_node(node)
    module.recompile()
    return module


def along_0(x):
    return collectives.all_gather(collectives.reduce_scatter(2 * x, "sum", 0, world()).relu(), 0, world()) * 3


def along_1(x):
    return collectives.all_gather(collectives.reduce_scatter(2 * x, "sum", 1, world()).relu(), 1, world()) * 3


def along_2(x):
    return collectives.all_gather(collectives.reduce_scatter(2 * x, "sum", 2, world()).relu(), 2, world()) * 3


def world():
    return dist.group.WORLD


@pytest.mark.parametrize("function", [along_0, along_1, along_2])
@pytest.mark.parametrize("dynamic", [False, True])
def test_same_bits_along_every_dimension(function, dynamic):
    x = torch.randn(4, 6, 8)
    module, count = moved(function, x, dynamic)
    assert count == (0 if function is along_0 else 2)
    assert not names(module) & {"cat", "chunk", "getitem"}
    before, _ = dynamo(function, x, dynamic=dynamic)
    inputs = [node.meta["example_value"] for node in module.graph.nodes if node.op == "placeholder"]
    arguments = [x if isinstance(value, torch.Tensor) else None for value in inputs]
    sizes = iter(x.shape)
    arguments = [next(sizes) if value is None else value for value in arguments]
    mine, theirs = without_collectives(module)(*arguments), without_collectives(before)(*arguments)
    assert torch.equal(mine[0], theirs[0])
    assert mine[0].stride() == theirs[0].stride()


def reverse(x):
    first, second = x.chunk(2, dim=1)
    return funcol.all_reduce(torch.cat([second, first]), "sum", world())


def some(x):
    first, second, _ = x.chunk(3, dim=1)
    return funcol.all_reduce(torch.cat([first, second]), "sum", world())


def uneven(x):
    first, second = x[:, :5].chunk(2, dim=1)
    return funcol.all_reduce(torch.cat([first, second], 1), "sum", world())


def twice(x):
    first, second = x.chunk(2, dim=1)
    return funcol.all_reduce(torch.cat([first, second, first]), "sum", world())


def elsewhere(x):
    first, second = x.chunk(2, dim=1)
    return funcol.all_reduce(torch.cat([first, second]) + 1, "sum", world())


@pytest.mark.parametrize("function", [reverse, some, uneven, twice, elsewhere])
def test_other_cats_are_left_alone(function):
    module, count = moved(function, torch.randn(4, 6, 8))
    assert count == 0
    assert "cat" in names(module)


def test_chunks_with_other_readers_stay():
    def function(x):
        first, second = x.chunk(2, dim=1)
        return funcol.all_reduce(torch.cat([first, second]), "sum", world()), first

    module, count = moved(function, torch.randn(4, 6, 8))
    assert count == 1
    assert names(module) >= {"chunk", "getitem", "movedim"}
    assert "cat" not in names(module)
