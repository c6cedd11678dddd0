# SPDX-License-Identifier: Apache-2.0
"""Other shapes, number formats and places of tokens on the way, there and back or for good; symbolic sizes."""

from __future__ import annotations

import operator

import torch

from farskip_compile.testing.strategies.network import WIDTH
from tests.fuzz.edits.registry import edit
from tests.fuzz.sheet import Sheet, Unfit


@edit
def cut_and_glued(sheet: Sheet) -> None:
    node = sheet.any_float()
    value = node.meta["example_value"]
    dim = sheet.rng.choice([dim for dim in range(value.dim()) if value.shape[dim] % 2 == 0])
    with sheet.behind(node):
        half = value.shape[dim] // 2
        how = sheet.rng.randrange(3)
        cut = [("chunk", 2), ("split", half), ("tensor_split", 2)][how]
        pieces = sheet.call(cut[0], node, cut[1], dim)
        both = [sheet.call(operator.getitem, pieces, index) for index in range(2)]
        if sheet.rng.random() < 0.3:
            both.reverse()
        new = sheet.call(torch.cat, both, dim if sheet.rng.random() < 0.8 else -1)
    sheet.feed(node, new)


@edit
def unbound_and_stacked(sheet: Sheet) -> None:
    node = sheet.any_float()
    dim = sheet.rng.randrange(node.meta["example_value"].dim())
    count = node.meta["example_value"].shape[dim]
    with sheet.behind(node):
        rows = sheet.call("unbind", node, dim)
        new = sheet.call(torch.stack, [sheet.call(operator.getitem, rows, index) for index in range(count)], dim)
    sheet.feed(node, new)


@edit
def expanded(sheet: Sheet) -> None:
    node = sheet.any_float()
    shape = tuple(node.meta["example_value"].shape)
    with sheet.behind(node):
        wide = sheet.call("expand", sheet.call("unsqueeze", node, 0), 2, *shape)
        how = sheet.rng.randrange(3)
        if how == 0:
            new = sheet.call("mean", wide, 0)
        elif how == 1:
            new = sheet.call(operator.getitem, wide, 1)
        else:
            new = sheet.call("expand_as", node, node)
    sheet.feed(node, new)


@edit
def transposed(sheet: Sheet) -> None:
    """There and back, or a move of tokens that stays."""
    node = sheet.any_float()
    with sheet.behind(node):
        how = sheet.rng.randrange(5)
        if how == 0:
            new = sheet.call("transpose", sheet.call("transpose", node, 0, 1), 0, 1)
        elif how == 1:
            new = sheet.call("transpose", sheet.call("contiguous", sheet.call("transpose", node, -1, 0)), -1, 0)
        elif how == 2:
            new = sheet.call("flip", node, -1)
        elif how == 3:
            new = sheet.call(torch.roll, node, 1, 0)
        else:
            shape = tuple(node.meta["example_value"].shape)
            new = sheet.call("reshape", sheet.call("transpose", node, -1, -2), *shape)
    sheet.feed(node, new)


@edit
def cast(sheet: Sheet) -> None:
    node = sheet.any_float()
    with sheet.behind(node):
        narrow = sheet.rng.choice([torch.bfloat16, torch.float16, torch.float32])
        new = sheet.call("to", node, narrow)
        if sheet.rng.random() < 0.7:
            new = sheet.call("to", new, torch.float64)
    sheet.feed(node, new)


@edit
def one_summand_is_narrow(sheet: Sheet) -> None:
    node = sheet.pick(sheet.sums())
    arg = sheet.rng.choice(node.args)
    with sheet.graph.inserting_before(node):
        narrow = sheet.call("to", arg, sheet.rng.choice([torch.bfloat16, torch.float32]))
    node.replace_input_with(arg, narrow)


@edit
def picked_by_an_index(sheet: Sheet) -> None:
    node = sheet.any_float()
    value = node.meta["example_value"]
    with sheet.behind(node):
        how = sheet.rng.randrange(6)
        last = value.shape[0] - 1
        if how == 0:
            new = sheet.call(operator.getitem, node, (slice(None), slice(None)))
        elif how == 1:
            new = sheet.call(torch.index_select, node, 0, sheet.call(torch.arange, last, -1, -1))
        elif how == 2:
            new = sheet.call(torch.where, sheet.call(operator.gt, node, 0.0), node, 0.5)
        elif how == 3:
            new = sheet.call(torch.where, sheet.call(operator.gt, node, 0.0), node, sheet.earlier(node))
        elif how == 4:
            new = sheet.call("masked_fill", node, sheet.call(operator.lt, node, -0.5), 0.0)
        else:
            new = sheet.call(operator.getitem, node, (Ellipsis, slice(0, WIDTH)))
    sheet.feed(node, new)


@edit
def sizes_are_symbols(sheet: Sheet) -> None:
    """Dynamic batch and sequence; shapes are read off the first input."""
    batch, sequence = sheet.network.batch, sheet.network.sequence
    if sheet.symbolic or batch == 1:
        raise Unfit
    sheet.symbolic = True
    source = next(iter(sheet.graph.nodes))
    with sheet.behind(source):
        rows = sheet.call("size", source, 0)
        tokens = sheet.call(operator.getitem, sheet.call(getattr, source, "shape"), 1)
    for node in sheet.graph.nodes:
        shape = node.args[1:]
        if node.op == "call_method" and node.target in ("view", "reshape") and shape[:2] == (batch, sequence):
            node.args = (node.args[0], rows, tokens, *shape[2:])
