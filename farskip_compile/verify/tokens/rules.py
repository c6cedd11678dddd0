# SPDX-License-Identifier: Apache-2.0
"""What an operator does to labels: a rule for each effect of the table of operators (`graph.operators`).

Where an effect has no rule, every row of the result is made of all.

Contract: no rule says that rows stay apart where they may meet. In doubt a result is one label, of all that goes in:
then a graph that handles fewer rows has another label, and is refused. Numbers that are known (places, counts, choices)
are not labelled but computed, by the operator itself.

In:    the name of an operator; its arguments, with `Labels` in place of tensors whose numbers nobody knows; the shape
       and the type of what it gives.
Out:   its result, in the same way. Integers and booleans that labels decide are drawn: the same for the same labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from farskip_compile._compat import OpOverloadPacket
from farskip_compile.passes.graph.operator_calls import dim_beside_index, dims_of
from farskip_compile.passes.graph.operators import Effect, operator_named
from farskip_compile.verify.tokens import moves, picks
from farskip_compile.verify.tokens.arguments import (
    Args,
    Form,
    Kwargs,
    LabelledCall,
    LabelRule,
    UnknownError,
    constants,
    labelled,
    values,
)
from farskip_compile.verify.tokens.labels import aligned, label_of, made, mixed

Apart = tuple[int, Sequence[Any]]
"""How many leading dimensions are rows; of which arguments."""


def apply(name: str, args: Args, kwargs: Kwargs, form: Form) -> Any:
    """Return the result of an operator on labels.

    Raises:
        UnknownError: the operator is not known to depend on its arguments alone.
    """
    call = LabelledCall(name.rstrip("_"), operator_named(name), args, kwargs, form)
    effect = call.operator.effect
    rule = RULES.get(effect)
    found = rule(call) if rule is not None else None
    if found is not None:
        return found
    if effect in ROWS:
        return _by_rows(call, *ROWS[effect](call))
    if not isinstance(getattr(torch.ops.aten, call.name, None), OpOverloadPacket):
        raise UnknownError(f"nothing is known of {name}")
    return _by_rows(call, 0, ())


def _pointwise(call: LabelledCall) -> Any:
    """Label each entry by the entries in its place; None for several results."""
    if isinstance(call.form, list):
        return None
    shape, dtype = call.one_form
    given = [call.args[0]] if call.operator.effect is Effect.CAST else values(call.args, call.kwargs)
    depth = max(one.depth + len(shape) - len(one.shape) if one.depth else 0 for one in map(labelled, given))
    rows = torch.full(shape[:depth], label_of(call.name, dtype, shape[depth:], constants(call.args, call.kwargs)))
    for value in given:
        rows = mixed(rows, aligned(labelled(value), shape, depth))
    return made(rows, shape, dtype)


def _larger(call: LabelledCall) -> Any:
    """Label the larger of two values, entry by entry; None for a single value, whose rows `ROWS` tells."""
    return _pointwise(call) if len(values(call.args, call.kwargs)) > 1 else None


def _by_rows(call: LabelledCall, depth: int, apart: Sequence[Any]) -> Any:
    """Label each row of the result by the same row of the arguments `apart`, and by all of the others.

    The first `depth` dimensions are rows.
    """
    depth = min([depth, max((labelled(one).depth for one in apart), default=0)])
    rows = torch.full(
        tuple(apart[0].shape[:depth]) if apart else (), label_of(call.name, constants(call.args, call.kwargs))
    )
    for value in values(call.args, call.kwargs):
        own = depth if any(value is one for one in apart) else 0
        labels = labelled(value, own)
        rows = mixed(mixed(rows, label_of(labels.shape[own:])), labels.rows)
    if isinstance(call.form, list):
        return tuple(made(mixed(rows, place), *one) for place, one in enumerate(call.form))
    return made(rows, *call.one_form)


def _product(call: LabelledCall) -> Any:
    """Label each row of a matrix by itself and the whole of another matrix: the rows of an expert with its weights.

    None if there are not as many matrices as others, or no rows are known of the first ones.
    """
    one, other = labelled(call.args[0]), labelled(call.args[1])
    depth = len(one.shape) - 2
    if depth <= 0 or one.shape[:depth] != other.shape[:-2] or one.depth <= depth:
        return None
    one, other = labelled(call.args[0], depth + 1), labelled(call.args[1], depth)
    rows = torch.full(
        one.shape[: depth + 1], label_of(call.name, constants(call.args, call.kwargs), other.shape[depth:])
    )
    return made(mixed(mixed(rows, one.rows), other.rows.unsqueeze(-1)), *call.one_form)


# Which dimensions are rows


def _all_but_features(call: LabelledCall) -> Apart:
    """Return all dimensions of the first argument but the last, which holds features."""
    return len(call.args[0].shape) - 1, [call.args[0]]


def _before(call: LabelledCall) -> Apart:
    """Return the dimensions before those along which entries meet."""
    value = call.args[0]
    return min(dims_of(call, call.operator, len(value.shape)), default=0), [value]


def _among_features(call: LabelledCall) -> Apart:
    """Entries of the same row are picked or replaced: `gather`, `scatter`."""
    value = call.args[0]
    depth = dim_beside_index(call, len(value.shape)) or 0
    others = [one for one in values(call.args[1:], call.kwargs) if len(one.shape) == len(value.shape)]
    apart = [value, *others]
    same = all(one.shape[:depth] == value.shape[:depth] for one in apart)
    return depth if same else 0, apart


def _norm(call: LabelledCall) -> Apart:
    given = call.argument(1, "normalized_shape")
    return len(call.args[0].shape) - (len(given) if isinstance(given, list | tuple) else 1), [call.args[0]]


def _matrices(call: LabelledCall) -> Apart:
    one, other = call.args[:2]
    if len(other.shape) <= 2:
        return len(one.shape) - 1, [one]
    same = len(one.shape) == len(other.shape) and tuple(one.shape[:-2]) == tuple(other.shape[:-2])
    return (len(one.shape) - 2, [one, other]) if same else (0, [])


def _attention(call: LabelledCall) -> Apart:
    """Sequences are rows, their tokens are not."""
    mask = call.argument(3, "attn_mask")
    apart = list(call.args[:3])
    if len({len(one.shape) for one in apart}) != 1:
        return 0, []
    if mask is not None and len(mask.shape) == len(apart[0].shape) and mask.shape[0] != 1:
        apart.append(mask)
    return int(all(one.shape[0] == apart[0].shape[0] for one in apart)), apart


RULES: dict[Effect, LabelRule] = {
    **moves.RULES,
    **picks.RULES,
    **dict.fromkeys([Effect.POINTWISE, Effect.CAST], _pointwise),
    Effect.REDUCE: _larger,
    **dict.fromkeys([Effect.PRODUCT, Effect.VECTOR_PRODUCT], _product),
}
"""Rules that follow rows; one that returns None leaves the call to `ROWS`."""
ROWS: dict[Effect, Callable[[LabelledCall], Apart]] = {
    Effect.LINEAR: _all_but_features,
    Effect.NORM: _norm,
    **dict.fromkeys([Effect.PRODUCT, Effect.VECTOR_PRODUCT], _matrices),
    Effect.ATTENTION: _attention,
    **dict.fromkeys([Effect.ALONG, Effect.ROLL, Effect.SORT, Effect.SLICE], _before),
    **dict.fromkeys([Effect.REDUCE, Effect.SUM, Effect.TAKE_BEST], _before),
    **dict.fromkeys([Effect.PICK, Effect.PUT], _among_features),
}
"""Of the other effects, how far rows stay apart; of those without an entry, each row is made of all."""
