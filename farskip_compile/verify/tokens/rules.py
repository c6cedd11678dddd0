# SPDX-License-Identifier: Apache-2.0
"""What an operator does to labels: a rule for each family; of what has none, every row of the result is made of all.

Contract: no rule says that rows stay apart where they may meet. In doubt a result is one label, of all that goes in:
then a graph that handles fewer rows has another label, and is refused. Numbers that are known (places, counts, choices)
are not labelled but computed, by the operator itself.

In:    the name of an operator; its arguments, with `Labels` in place of tensors whose numbers nobody knows; the shape
       and the type of what it gives.
Out:   its result, in the same way. Integers and booleans that labels decide are drawn: the same for the same labels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from farskip_compile._compat import OpOverloadPacket
from farskip_compile.verify.tokens import moves, picks
from farskip_compile.verify.tokens.arguments import (
    Args,
    Form,
    Kwargs,
    UnknownError,
    argument,
    constants,
    labelled,
    one_form,
    values,
)
from farskip_compile.verify.tokens.labels import aligned, label_of, made, mixed

Apart = tuple[int, Sequence[Any]]
"""How many leading dimensions are rows; of which arguments."""


def apply(name: str, args: Args, kwargs: Kwargs, form: Form) -> Any:
    """The result of an operator on labels.

    Raises:
        UnknownError: the operator is not known to depend on its arguments alone.
    """
    plain = name.rstrip("_")
    for known in (moves.RULES, picks.RULES):
        if plain in known:
            return known[plain](args, kwargs, form)
    if plain in ("bmm", "matmul") and (depth := _matrices(args)):
        return _with_its_matrix(plain, args, kwargs, form, depth)
    if plain in ROWS:
        return _by_rows(plain, args, kwargs, form, *ROWS[plain](args, kwargs))
    if plain in POINTWISE or _has_tag(plain, torch.Tag.pointwise):
        return _pointwise(plain, args, kwargs, form)
    if not isinstance(getattr(torch.ops.aten, plain, None), OpOverloadPacket):
        raise UnknownError(f"nothing is known of {name}")
    return _by_rows(plain, args, kwargs, form, 0, ())


def _pointwise(name: str, args: Args, kwargs: Kwargs, form: Form) -> Any:
    """Each entry is made of the entries in its place."""
    shape, dtype = one_form(form)
    given = [args[0]] if name == "type_as" else values(args, kwargs)
    depth = max(one.depth + len(shape) - len(one.shape) if one.depth else 0 for one in map(labelled, given))
    rows = torch.full(shape[:depth], label_of(name, dtype, shape[depth:], constants(args, kwargs)))
    for value in given:
        rows = mixed(rows, aligned(labelled(value), shape, depth))
    return made(rows, shape, dtype)


def _by_rows(name: str, args: Args, kwargs: Kwargs, form: Form, depth: int, apart: Sequence[Any]) -> Any:
    """The first `depth` dimensions of the arguments `apart`, and of the result, are rows; of all others everything goes
    into each row."""
    depth = min([depth, max((labelled(one).depth for one in apart), default=0)])
    rows = torch.full(tuple(apart[0].shape[:depth]) if apart else (), label_of(name, constants(args, kwargs)))
    for value in values(args, kwargs):
        own = depth if any(value is one for one in apart) else 0
        labels = labelled(value, own)
        rows = mixed(mixed(rows, label_of(labels.shape[own:])), labels.rows)
    if isinstance(form, list):
        return tuple(made(mixed(rows, place), *one) for place, one in enumerate(form))
    return made(rows, *one_form(form))


def _matrices(args: Args) -> int:
    """Of a product of as many matrices as there are others, the dimensions that count them; 0 of any other one, or if
    no rows are known of the first ones."""
    one, other = labelled(args[0]), labelled(args[1])
    depth = len(one.shape) - 2
    return depth if depth > 0 and one.shape[:depth] == other.shape[:-2] and one.depth > depth else 0


def _with_its_matrix(name: str, args: Args, kwargs: Kwargs, form: Form, depth: int) -> Any:
    """Each row of a matrix with the whole of another one: the rows of an expert with its weights."""
    one, other = labelled(args[0], depth + 1), labelled(args[1], depth)
    rows = torch.full(one.shape[: depth + 1], label_of(name, constants(args, kwargs), other.shape[depth:]))
    return made(mixed(mixed(rows, one.rows), other.rows.unsqueeze(-1)), *one_form(form))


# Which dimensions are rows


def _all_but(features: int) -> Callable[[Args, Kwargs], Apart]:
    """The last dimensions of the first argument are features."""
    return lambda args, kwargs: (len(args[0].shape) - features, [args[0]])


def _before(default: object = None, place: int = 1) -> Callable[[Args, Kwargs], Apart]:
    """The rows are the dimensions before those that argument number `place` names."""

    def rule(args: Args, kwargs: Kwargs) -> Apart:
        given = argument(args, kwargs, place, "dim", default)
        dims = list(given) if isinstance(given, list | tuple) else [given]
        count = len(args[0].shape)
        if any(type(dim) is not int for dim in dims):
            return 0, [args[0]]
        return min((dim % max(count, 1) for dim in dims), default=0), [args[0]]

    return rule


def _among_features(args: Args, kwargs: Kwargs) -> Apart:
    """Entries of the same row are picked or replaced: `gather`, `scatter`."""
    depth, apart = _before()(args, kwargs)
    others = (argument(args, kwargs, 2, "index"), argument(args, kwargs, 3, "src"))
    apart = [*apart, *(one for one in others if hasattr(one, "shape") and len(one.shape) == len(args[0].shape))]
    same = all(one.shape[:depth] == apart[0].shape[:depth] for one in apart)
    return depth if same else 0, apart


def _norm(args: Args, kwargs: Kwargs) -> Apart:
    given = argument(args, kwargs, 1, "normalized_shape")
    return len(args[0].shape) - (len(given) if isinstance(given, list | tuple) else 1), [args[0]]


def _product(args: Args, kwargs: Kwargs) -> Apart:
    one, other = args[0], args[1]
    if len(other.shape) <= 2:
        return len(one.shape) - 1, [one]
    same = len(one.shape) == len(other.shape) and tuple(one.shape[:-2]) == tuple(other.shape[:-2])
    return (len(one.shape) - 2, [one, other]) if same else (0, [])


def _attention(args: Args, kwargs: Kwargs) -> Apart:
    """Sequences are rows, their tokens are not."""
    mask = argument(args, kwargs, 3, "attn_mask")
    apart = list(args[:3])
    if mask is not None and len(mask.shape) == len(apart[0].shape) and mask.shape[0] != 1:
        apart.append(mask)
    return int(all(one.shape[0] == apart[0].shape[0] for one in apart)), apart


ROWS: dict[str, Callable[[Args, Kwargs], Apart]] = {
    "linear": _all_but(1),
    "layer_norm": _norm,
    "rms_norm": _norm,
    "matmul": _product,
    "mm": _product,
    "bmm": _product,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(["softmax", "log_softmax", "cumsum", "cumprod", "logsumexp"], _before()),
    **dict.fromkeys(["sum", "mean", "amax", "amin", "var", "std", "prod", "argmax", "argmin"], _before()),
    **dict.fromkeys(["norm", "linalg_vector_norm"], _before(place=2)),
    **dict.fromkeys(["gather", "scatter"], _among_features),
    "glu": _before(-1),
}
POINTWISE = frozenset(
    ["to", "float", "double", "half", "bfloat16", "type_as", "bool", "long", "int", "truediv", "invert", "masked_fill"]
)


@functools.lru_cache(maxsize=4096)
def _has_tag(name: str, tag: torch.Tag) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    if not isinstance(packet, OpOverloadPacket):
        return False
    return any(tag in getattr(packet, overload).tags for overload in packet.overloads())
