# SPDX-License-Identifier: Apache-2.0
"""One name for each value, and nothing hidden in nested graphs.

In:    the graph that Dynamo hands to a backend.
Out:   the same function, bit for bit, in a form in which dataflow can be read from the edges.
Never: changes a value, a dtype, what is recomputed, or the order of writes to graph inputs.

A node whose value is used must carry a fake value, as Dynamo leaves it: without one it is unknown which tensors share
memory, and what is a sum. A graph that lost some is refused.

Algorithm:
1. Open activation checkpoints (`checkpoints`); note the user's call at each node, for messages.
2. Write collectives along inner dimensions as moves of axes (`axis_moves`), and calls in one way (`plain_calls`).
3. Single assignment (`single_assignment`).
4. Mark what accumulations add (`accumulations`). The driver lints the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import fx

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import ops, user_calls
from farskip_compile.passes.normalize.accumulations import mark_accumulations
from farskip_compile.passes.normalize.axis_moves import move_axes
from farskip_compile.passes.normalize.checkpoints import open_checkpoints
from farskip_compile.passes.normalize.plain_calls import write_plain_calls
from farskip_compile.passes.normalize.single_assignment import assign_once


@dataclass(frozen=True)
class Normalized:
    """What the pass did."""

    checkpoints_opened: int
    writes_replaced: int


def normalize(module: fx.GraphModule) -> Normalized:
    """Normalise `module` in place.

    Raises:
        UnsupportedPatternError: a checkpoint that can't be opened without changing what is recomputed, or a value that
            nothing is known about.
    """
    _refuse_unknown_values(module)
    opened = open_checkpoints(module)  # 1
    user_calls.note_written(module.graph)
    move_axes(module.graph)  # 2
    write_plain_calls(module.graph)
    replaced = assign_once(module.graph)  # 3
    mark_accumulations(module.graph)  # 4
    return Normalized(checkpoints_opened=opened, writes_replaced=replaced)


def _refuse_unknown_values(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if ops.fake(node) is not None or not any(_needs_data(user) for user in node.users):
            continue
        if node.op == "get_attr" and not isinstance(attrgetter(str(node.target))(module), torch.Tensor):
            continue  # the body of a higher-order operator
        if _made_of_constants(node):
            continue  # settings that a function takes, such as a named tuple: no data are in it
        raise UnsupportedPatternError(
            f"nothing is known about the value of {node.name!r}: it carries no fake value",
            way_out="hand over the graph as Dynamo made it, with node.meta['example_value']",
            where=user_calls.where(node),
        )


def _made_of_constants(node: fx.Node) -> bool:
    """Whether it is an object of a Python class that was called with nothing but constants, and such objects."""
    makes = node.op == "call_function" and isinstance(node.target, type)
    return makes and all(map(_made_of_constants, node.all_input_nodes))


def _needs_data(user: fx.Node) -> bool:
    return user.op == "output" or ops.tensor(user) is not None
