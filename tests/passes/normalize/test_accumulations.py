# SPDX-License-Identifier: Apache-2.0
"""Which calls are sums of what they are given and what they add; all others are values of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from farskip_compile.passes.normalize.accumulations import addends, lower, mark_accumulations

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def spread(i: Tensor, x: Tensor) -> Tensor:
    return i[:, None].expand_as(x)


SUMS: dict[str, Call] = {
    "index_add": lambda a, i, x: a.index_add(0, i, x),
    "index_add with alpha": lambda a, i, x: a.index_add(0, i, x, alpha=2),
    "scatter_add": lambda a, i, x: a.scatter_add(0, spread(i, x), x),
    "scatter_reduce": lambda a, i, x: a.scatter_reduce(0, spread(i, x), x, "sum"),
    "scatter_reduce by keyword": lambda a, i, x: a.scatter_reduce(0, spread(i, x), x, reduce="sum", include_self=True),
    "index_put": lambda a, i, x: a.index_put((i,), x, True),
    "index_put by keyword": lambda a, i, x: a.index_put((i,), x, accumulate=True),
    "put of a sum": lambda a, i, x: a.index_put((i,), a[i] + x),
    "put of a sum, the other way round": lambda a, i, x: a.index_put((i,), x + a[i]),
    "put of a difference": lambda a, i, x: a.index_put((i,), a[i] - x),
    "put of a sum with a copy of the rows": lambda a, i, x: a.index_put((i,), a[i, :].clone() + x),
}
OTHERS: dict[str, Call] = {
    "index_put": lambda a, i, x: a.index_put((i,), x),
    "index_put that replaces": lambda a, i, x: a.index_put((i,), x, False),
    "index_put that replaces, by keyword": lambda a, i, x: a.index_put((i,), x, accumulate=False),
    "put of a difference, the other way round": lambda a, i, x: a.index_put((i,), x - a[i]),
    "put of a sum with rows from elsewhere": lambda a, i, x: a.index_put((i,), (a * 2)[i] + x),
    "put of a sum with other rows": lambda a, i, x: a.index_put((i,), a[i.flip(0)] + x),
    "largest": lambda a, i, x: a.scatter_reduce(0, spread(i, x), x, "amax"),
    "product": lambda a, i, x: a.scatter_reduce(0, spread(i, x), x, reduce="prod"),
    "sum without what was there": lambda a, i, x: a.scatter_reduce(0, spread(i, x), x, "sum", include_self=False),
    "index_copy": lambda a, i, x: a.index_copy(0, i, x),
    "scatter": lambda a, i, x: a.scatter(0, spread(i, x), x),
    "into zeros": lambda a, i, x: torch.zeros_like(a).index_add(0, i, x),
}


def captured(call: Call) -> fx.GraphModule:
    graphs: list[fx.GraphModule] = []

    def keep(module: fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(module)
        return module.forward

    torch.compiler.reset()
    a, i, x = torch.randn(5, 3), torch.tensor([0, 2]), torch.randn(2, 3)
    torch.compile(lambda a, i, x: call(a * 2, i, x), backend=keep, fullgraph=True)(a, i, x)
    return graphs[0]


@pytest.mark.parametrize("how", SUMS)
def test_a_sum_is_marked_and_its_mark_is_what_it_adds(how: str) -> None:
    module = captured(SUMS[how])
    assert mark_accumulations(module.graph) == 1
    ((node, mark),) = addends(module.graph).items()
    base = node.args[0]
    with module.graph.inserting_after(node):
        total = module.graph.call_function(torch.add, (base, mark))
    node.replace_all_uses_with(total)
    module.graph.erase_node(node)
    assert lower(module.graph) == 1
    module.recompile()
    a, i, x = torch.randn(5, 3), torch.tensor([3, 1]), torch.randn(2, 3)
    given = {"l_a_": a, "l_i_": i, "l_x_": x}
    (found,) = module(*(given[node.name] for node in module.graph.nodes if node.op == "placeholder"))
    torch.testing.assert_close(found, SUMS[how](a * 2, i, x))


@pytest.mark.parametrize("how", OTHERS)
def test_anything_else_is_not(how: str) -> None:
    assert mark_accumulations(captured(OTHERS[how]).graph) == 0
