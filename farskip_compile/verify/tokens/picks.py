# SPDX-License-Identifier: Apache-2.0
"""Operators that pick rows by indices, write them, choose them, or multiply them by the matrix of their expert.

Contract: as in `rules`. Indices are numbers: they were computed. What is chosen is drawn.
"""

from __future__ import annotations

from typing import Any

import torch

from farskip_compile.passes.graph.operator_calls import dim_beside_index, dim_of
from farskip_compile.passes.graph.operators import Effect
from farskip_compile.verify.tokens.arguments import Args, LabelledCall, LabelRule, UnknownError, constants, labelled
from farskip_compile.verify.tokens.labels import TokenLabels, at_depth, coarser, label_of, mixed

# Picks and writes along the first dimension


def _picked(call: LabelledCall) -> Any:
    """`index_select`."""
    value = call.args[0]
    if dim_beside_index(call, len(value.shape)) != 0:
        raise UnknownError("rows are picked along another dimension than the first")
    return TokenLabels(at_depth(value, max(value.depth, 1)).rows[call.argument(2, "index")], call.shape)


def _looked_up(call: LabelledCall) -> Any:
    """`embedding`."""
    index, table = call.args[:2]
    if isinstance(index, TokenLabels) or isinstance(table, torch.Tensor):
        raise UnknownError("rows of a table are looked up by indices that are not known")
    if call.argument(5, "scale_grad_by_freq", False):
        raise UnknownError("gradients are scaled by how often a row is looked up")
    return TokenLabels(mixed(at_depth(table, 0).rows, index.long()), call.shape)


def _put(call: LabelledCall) -> Any:
    """`index_copy`: rows in their places."""
    if call.name != "index_copy":
        return None
    value, index, source = call.args[0], call.argument(2, "index"), call.argument(3, "source")
    return _written(value, dim_beside_index(call, len(value.shape)), index, labelled(source))


def _written(value: Any, dim: int | None, index: torch.Tensor, source: TokenLabels) -> TokenLabels:
    """Which row stays, where several are written to one place, nobody knows: the label there is made of all that is
    written. Rows that have no place, which are dropped so, may be told by it only from the same rows."""
    target = labelled(value)
    if dim != 0:
        raise UnknownError("rows are written along another dimension than the first")
    depth = max(target.depth, source.depth, 1)
    rows, new = at_depth(target, depth).rows.clone(), at_depth(source, depth).rows
    index = torch.where(index < 0, index + len(rows), index)
    rows[index] = new
    several = index.bincount(minlength=len(rows)) > 1
    if several.any():
        unknown = coarser(TokenLabels(torch.where(_over(several[index], new), new, 0), source.shape), 0).rows
        rows[several] = mixed(unknown, label_of("one of several", index.tolist()))
    return TokenLabels(rows, target.shape)


def _over(mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """For each row, at the depth of `rows`."""
    return mask.view(-1, *[1] * (rows.dim() - 1)).expand(rows.shape)


def write(args: Args) -> None:
    """`setitem`, in place: rows in their places, or all of them."""
    value, index, source = args
    parts = list(index) if isinstance(index, tuple | list) else [index]
    if not isinstance(parts[0], torch.Tensor) or any(part != slice(None) for part in parts[1:]):
        raise UnknownError("something else is written to than rows in their places")
    if parts[0].dtype == torch.bool:
        parts[0] = parts[0].nonzero().squeeze(-1)
    value.rows = _written(value, 0, parts[0], labelled(source)).rows


def _added(call: LabelledCall) -> Any:
    """`index_add` and `scatter_add`: rows that meet are added up in their order."""
    if call.operator.effect is Effect.PUT and call.name != "scatter_add":
        return None
    args, kwargs = call.args, call.kwargs
    target = labelled(args[0])
    if call.operator.effect is Effect.ADD_FIRST:
        dim, index, source = 0, args[1], args[2]
    else:
        dim, index, source = args[1], args[2], call.argument(3, "src", kwargs.get("source"))
    labels = labelled(source)
    while index.dim() > 1:  # the same for each feature
        if index.shape[-1] and not torch.equal(index, index[..., :1].expand(index.shape)):
            raise UnknownError("each feature is added to another row")
        index = index[..., 0] if index.shape[-1] else index.sum(-1)
    if dim % len(target.shape) != 0:
        raise UnknownError("rows are added along another dimension than the first")
    rows, added = at_depth(target, 1).rows.clone(), at_depth(labels, 1).rows
    how = label_of("added", constants([], {name: value for name, value in kwargs.items() if name == "alpha"}))
    order = index.argsort(stable=True)
    index, added = index[order], added[order]
    first = torch.searchsorted(index, index)
    turn = torch.arange(len(index)) - first
    for number in range(int(turn.max()) + 1 if len(turn) else 0):
        now = turn == number
        rows[index[now]] = mixed(mixed(rows[index[now]], how), added[now])
    return TokenLabels(rows, target.shape)


# Choices


def _best(call: LabelledCall) -> Any:
    """`topk`, `sort`: which ones is drawn, for each row. Every other row takes the first ones, so that these have many
    more rows than the others: what becomes of too many must be seen."""
    if call.operator.effect is Effect.SORT and call.name != "sort":
        return None
    value = call.args[0]
    if not isinstance(call.form, list) or len(call.form) != 2:
        raise UnknownError("its results are not known")
    (shape, _), (_, numbers) = call.form
    if dim_of(call, call.operator, len(shape)) != len(shape) - 1:
        raise UnknownError("the best of another dimension than the last")
    labels = at_depth(value, len(shape) - 1)
    number = torch.arange(value.shape[-1])
    drawn = torch.where(labels.rows.unsqueeze(-1) & 1 == 0, mixed(labels.rows.unsqueeze(-1), number), number)
    places = drawn.argsort(-1)[..., : shape[-1]].to(numbers).contiguous()
    return TokenLabels(mixed(labels.rows, label_of("best", constants(call.args, call.kwargs))), shape), places


# Experts


def _of_experts(call: LabelledCall) -> Any:
    """`_grouped_mm`: each row with the matrix of its expert; rows after the last expert's are undefined."""
    value, weights = call.args[:2]
    ends = call.argument(2, "offs")
    if isinstance(ends, TokenLabels) or ends is None or len(value.shape) != 2 or len(weights.shape) != 3:
        raise UnknownError("a grouped product of another kind")
    expert = torch.searchsorted(ends.long(), torch.arange(value.shape[0]), right=True)
    others = [*call.args[3:], *(value for name, value in call.kwargs.items() if name != "offs")]
    if any(one is not None for one in others):
        raise UnknownError("a grouped product with a bias, or of another type")
    rows = mixed(at_depth(value, 1).rows, label_of("grouped", value.shape[1:], weights.shape[1:]))
    rows = mixed(rows, at_depth(weights, 1).rows[expert.clamp(max=weights.shape[0] - 1)])
    nothing = mixed(rows, label_of("nothing"))
    return TokenLabels(torch.where(expert < weights.shape[0], rows, nothing), call.shape)


RULES: dict[Effect, LabelRule] = {
    Effect.PICK_ROWS: _picked,
    Effect.TABLE: _looked_up,
    Effect.PUT_ROWS: _put,
    **dict.fromkeys([Effect.PUT, Effect.ADD_ROWS, Effect.ADD_FIRST], _added),
    **dict.fromkeys([Effect.BEST, Effect.SORT], _best),
    Effect.GROUPED: _of_experts,
}
