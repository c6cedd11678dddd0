# SPDX-License-Identifier: Apache-2.0
"""Writes, views and aliases: through the tensor, through a view, by unknown operators, to inputs, into the outputs."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx

from farskip_compile.testing.strategies.network import WIDTH
from tests.fuzz import custom_ops  # noqa: F401  registers them
from tests.fuzz.edits.registry import edit
from tests.fuzz.sheet import Sheet


@edit
def written_in_place(sheet: Sheet) -> None:
    """Through the tensor or a view of it, at once or after some have read it."""
    node = sheet.any_float()
    other = sheet.rng.choice([1.0, 0.5, sheet.earlier(node)]) if sheet.rng.random() < 0.7 else 0.25
    width = node.meta["example_value"].shape[0]
    with sheet.somewhere_behind(node):
        how = sheet.rng.randrange(14)
        if how == 0:
            sheet.call("add_", sheet.call("view", node, -1), 1.0)
        elif how == 1:
            sheet.call("mul_", sheet.call("view", node, -1, WIDTH), 0.5)
        elif how == 2:
            sheet.call("mul_", sheet.call(operator.getitem, node, (slice(None), 0)), 0.5)
        elif how == 3:
            sheet.call(operator.setitem, node, (slice(None), 0), 0.5)
            sheet.hides = True
        elif how == 4:
            sheet.call("add_", sheet.call("narrow", node, -1, 0, 3), 1.0)
        elif how == 5:
            sheet.call("copy_", node, other)
            sheet.hides = True
        elif how == 6:
            sheet.call("add_", sheet.call("transpose", node, 0, 1), 1.0)
        elif how == 7:
            sheet.call(torch.add, node, 1.0, out=node)
        elif how == 8:
            sheet.call(F.silu, node, inplace=True)
        elif how == 9:
            sheet.call("masked_fill_", node, sheet.call(operator.gt, node, 0.5), 0.5)
        elif how == 10:
            sheet.call(operator.iadd, node, other)
        elif how == 11:
            sheet.call(torch.ops.aten.mul_.Tensor, node, other if isinstance(other, fx.Node) else node)
        elif how == 12:
            sheet.call("index_add_", node, 0, sheet.call(torch.arange, width), sheet.call("clone", node))
        else:
            sheet.call("add_", node, other, alpha=0.5)


@edit
def written_by_an_unknown_operator(sheet: Sheet) -> None:
    node = sheet.any_float()
    packet = sheet.rng.random() < 0.5
    with sheet.somewhere_behind(node):
        if sheet.rng.random() < 0.5:
            op = torch.ops.farskip_fuzz.halve_
            sheet.call(op if packet else op.default, node)
        else:
            source = sheet.earlier(node)
            op = torch.ops.farskip_fuzz.overwrite
            sheet.call(op if packet else op.default, source, node)
            sheet.hides = True


@edit
def read_through_an_old_view(sheet: Sheet) -> None:
    """A view is made, the tensor is written, and the view is read later."""
    node = sheet.any_float()
    shape = node.meta["example_value"].shape
    with sheet.behind(node):
        view = sheet.call("view", sheet.call("view", node, -1), *shape)
    with sheet.somewhere_behind(view):
        sheet.call("add_", node, 1.0)
    for user in list(node.users):
        if sheet.order[user] > sheet.order[view] and user.op != "output" and sheet.rng.random() < 0.5:
            user.replace_input_with(node, view)


@edit
def an_input_is_written(sheet: Sheet) -> None:
    """A counter, or a cache as large as the stream that somebody reads again."""
    node = sheet.any_float()
    shape = tuple(node.meta["example_value"].shape)
    cache = sheet.input("cache", torch.full(shape, 0.25, dtype=torch.float64))
    with sheet.behind(node):
        how = sheet.rng.randrange(3)
        if how == 0:
            sheet.call("add_", cache, sheet.call("mean", node))
            return
        sheet.call("copy_" if how == 1 else "add_", cache, node)
        read = sheet.call(operator.mul, cache, 1.0)
    sheet.feed(node, read)


@edit
def the_same_memory_twice_in_the_outputs(sheet: Sheet) -> None:
    node = sheet.any_float()
    with sheet.somewhere_behind(node):
        how = sheet.rng.randrange(4)
        if how == 0:
            out = sheet.call("view", node, -1)
        elif how == 1:
            out = sheet.call("detach", node)
        elif how == 2:
            out = sheet.call("transpose", node, 0, 1)
        else:
            out = node
    sheet.also_return(out)
    if sheet.rng.random() < 0.3:
        sheet.also_return(sheet.rng.choice([n for n in sheet.graph.nodes if n.op == "placeholder"]))


@edit
def an_inner_value_is_returned(sheet: Sheet) -> None:
    """Router logits, hidden states of a sub-block."""
    inner = [
        node
        for node in sheet.graph.nodes
        if node.op.startswith("call") and isinstance(node.meta.get("example_value"), torch.Tensor)
    ]
    sheet.also_return(sheet.pick(inner))
