# SPDX-License-Identifier: Apache-2.0
"""The stream is no sum any more, or only seemingly; or a sum that is written in another way."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F

from farskip_compile.testing.strategies.network import WIDTH
from tests.fuzz.edits.registry import edit
from tests.fuzz.sheet import Sheet


@edit
def multiplied_by_an_activation(sheet: Sheet) -> None:
    node = sheet.any_float()
    with sheet.behind(node):
        gate = sheet.call(sheet.rng.choice([torch.sigmoid, torch.tanh, F.silu]), node)
        new = sheet.call(operator.mul, *sheet.rng.sample([node, gate], 2))
    sheet.feed(node, new)


@edit
def gated_by_something_earlier(sheet: Sheet) -> None:
    """The gate is computed in front of the value or behind it, for each number or each token."""
    node = sheet.any_float()
    other = sheet.earlier(node)
    per_token, early = sheet.rng.random() < 0.5, sheet.rng.random() < 0.5
    with sheet.behind(other if early else node):
        gate = sheet.call(torch.sigmoid, other)
        if per_token:
            gate = sheet.call("mean", gate, -1, keepdim=True)
        new = None if early else sheet.call(operator.mul, *sheet.rng.sample([node, gate], 2))
    if new is None:
        with sheet.behind(node):
            new = sheet.call(operator.mul, *sheet.rng.sample([node, gate], 2))
    sheet.feed(node, new)


@edit
def normed_on_the_way(sheet: Sheet) -> None:
    node = sheet.any_float()
    with sheet.behind(node):
        norm = sheet.rng.choice([F.rms_norm, F.layer_norm])
        weight = sheet.constant(torch.linspace(0.5, 1.5, WIDTH, dtype=torch.float64))
        new = sheet.call(norm, node, (WIDTH,), weight)
    sheet.feed(node, new)


@edit
def added_twice(sheet: Sheet) -> None:
    node = sheet.pick(sheet.sums())
    with sheet.behind(node):
        again = sheet.rng.choice(node.args)
        if sheet.rng.random() < 0.5:
            again = sheet.call(operator.mul, again, 0.5)
        new = sheet.call(operator.add, node, again)
    sheet.feed(node, new)


@edit
def subtracted(sheet: Sheet) -> None:
    node = sheet.pick(sheet.sums())
    left, right = sheet.rng.sample(list(node.args), 2)
    with sheet.behind(node):
        how = sheet.rng.randrange(5)
        if how == 0:
            new = sheet.call(operator.sub, left, right)
        elif how == 1:
            new = sheet.call(torch.sub, left, right, alpha=2)
        elif how == 2:
            new = (
                sheet.call("rsub", left, right)
                if hasattr(torch.Tensor, "rsub")
                else sheet.call(torch.rsub, left, right)
            )
        elif how == 3:
            new = sheet.call(operator.add, left, sheet.call(operator.neg, right))
        else:
            new = sheet.call(torch.ops.aten.sub.Tensor, left, right)
    sheet.feed(node, new)


@edit
def summed_in_another_way(sheet: Sheet) -> None:
    node = sheet.pick(sheet.sums())
    left, right = node.args
    with sheet.behind(node):
        how = sheet.rng.randrange(6)
        if how == 0:
            new = sheet.call("sum", sheet.call(torch.stack, [left, right]), 0)
        elif how == 1:
            new = sheet.call(torch.lerp, left, right, 0.5)
        elif how == 2:
            new = sheet.call(torch.addcmul, left, right, right)
        elif how == 3:
            new = sheet.call(torch.add, left, right, alpha=0.5)
        elif how == 4:
            new = sheet.call(torch.add, left, other=right)
        else:
            new = sheet.call("add", left, right, alpha=1)
    sheet.feed(node, new)


@edit
def crossed(sheet: Sheet) -> None:
    """One reader reads another value of the same shape."""
    node = sheet.any_float()
    reader = sheet.pick([user for user in node.users if user.op != "output"])
    other = sheet.earlier(node) if sheet.rng.random() < 0.5 else None
    if other is None:
        order, shape = sheet.order, node.meta["example_value"].shape
        other = sheet.pick(
            [n for n in sheet.floats() if order[n] < order[reader] and n.meta["example_value"].shape == shape]
        )
    reader.replace_input_with(node, other)
