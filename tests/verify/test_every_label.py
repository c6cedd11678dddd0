# SPDX-License-Identifier: Apache-2.0
"""Every line of the table of operators, as the proof by labels reads it, held against numbers.

Each call of `operator_calls` is run on labels that are hashes of the rows of its arguments: as they are, and with one
row of one argument changed. Two rows with one label must then be the same numbers, among what goes in and what
comes out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import fx

from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.graph.operators import Effect, operator_named
from farskip_compile.verify.tokens.arguments import UnknownError, flat, labelled
from farskip_compile.verify.tokens.labels import TokenLabels
from farskip_compile.verify.tokens.rules import ROWS, RULES, apply
from tests.verify.operator_calls import CALLS
from tests.verify.test_every_rule import Calls, names_in

NEVER_APART = frozenset(
    [
        *("rand_like", "randn_like", "full_like", "new_full", "dropout", "native_dropout", "feature_dropout"),
        *("iadd", "imul", "isub", "itruediv", "invert", "and_", "or_", "xor", "pad", "constant_pad_nd", "scatter_add"),
    ]
)
"""They are random, write, take integers, which are numbers; or only a call along rows is followed by labels."""
UNDEFINED = frozenset(["_grouped_mm"])
"""Offsets that fall, which are among the calls, name no groups."""
Values = tuple[tuple[Any, ...], dict[str, Any]]


def drawn(name: str) -> Iterator[tuple[fx.Node, dict[fx.Node, Any]]]:
    """Yield each call of an operator, and the values of its graph."""
    calls = Calls((2, 3, 4))
    for call in CALLS[name]:
        for value in (*calls.starts[:2], calls.picks[0]):
            for other in calls.others[::3] if "o" in names_in(call) else calls.others[:1]:
                calls.evaluate(call, value, other)
    for node in list(calls.drawing.graph.nodes):
        if node.op.startswith("call") and not effects.mutated_args(node) and not effects.is_random(node):
            yield node, calls.drawing.values


def run(node: fx.Node, given: Values) -> Any:
    args, kwargs = given
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    return getattr(args[0], str(node.target))(*args[1:], **kwargs)


def is_data(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def changed(node: fx.Node, values: dict[fx.Node, Any]) -> Iterator[Values]:
    """Yield the arguments as they are, and with the first or last row of each one changed."""
    yield fx.map_arg((node.args, node.kwargs), values.__getitem__)  # type: ignore[misc]
    for arg in node.all_input_nodes:
        if not is_data(values[arg]) or not values[arg].numel():
            continue
        for place in (0, -1):
            other = values[arg].clone()
            row = other[(place,) * max(other.dim() - 1, 0)]
            row += torch.rand_like(row) + 0.5
            yield fx.map_arg(  # type: ignore[misc]
                (node.args, node.kwargs), lambda one, arg=arg, other=other: other if one is arg else values[one]
            )


def form(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, tuple | list) and all(isinstance(one, torch.Tensor) for one in value):
        return [(tuple(one.shape), one.dtype) for one in value]
    return None


def claims(node: fx.Node, values: dict[fx.Node, Any]) -> Iterator[tuple[TokenLabels, torch.Tensor]]:
    """Yield what goes in and comes out of a call, as labels and as numbers."""
    for given in changed(node, values):
        result = run(node, given)
        labels = fx.node.map_aggregate(given, lambda one: labelled(one) if is_data(one) else one)
        if not any(isinstance(one, TokenLabels) for one in flat(labels)):
            return
        try:
            found = apply(ops.op_name(node), *labels, form(result))  # type: ignore[misc]
        except (UnknownError, ValueError, RuntimeError, IndexError, TypeError, KeyError, AttributeError):
            continue  # nothing is claimed
        yield from zip(flat(labels), flat(given), strict=True)
        yield from zip(flat(found), flat(result), strict=True)


@pytest.mark.parametrize("name", sorted(CALLS.keys() - UNDEFINED))
def test_rows_with_one_label_are_the_same_numbers(name: str) -> None:
    wrong = set()
    apart = False
    for node, values in drawn(name):
        rows: dict[tuple[int, int], torch.Tensor] = {}
        for labels, numbers in claims(node, values):
            if not isinstance(labels, TokenLabels) or not numbers.numel():
                continue
            assert labels.shape == tuple(numbers.shape), node.format_node()
            flat_rows = numbers.double().reshape(labels.rows.numel(), -1)
            for label, row in zip(labels.rows.flatten().tolist(), flat_rows, strict=True):
                known = rows.setdefault((label, len(row)), row)
                if not torch.allclose(known, row, rtol=1e-6, atol=1e-6, equal_nan=True):
                    wrong.add(str(node.format_node()))
            apart |= ops.op_name(node).rstrip("_") == name.rstrip("_") and labels.depth > 0
    assert not wrong, "\n".join(sorted(wrong))
    effect = operator_named(name).effect
    follows = effect in {*RULES, *ROWS} - {Effect.SIZE, Effect.SORT, Effect.REDUCE}
    assert apart or not follows or name in NEVER_APART, "no call of it has a label for each row"
