# SPDX-License-Identifier: Apache-2.0
"""Writes into the stream, in every form that torch has: put, masked, scattered, through views, in functions.

Contract: data, by name; no write changes the shape. What is written is a value that does not come from the stream
(visual features of deepstack), the stream itself at the same rows, or the stream at other rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.fuzz.streams.forms import WIDTH, Form

D = WIDTH


def _where(x: Tensor, mask: Tensor, value: Tensor | float) -> Tensor:
    return torch.where(mask[..., None], torch.as_tensor(value, dtype=x.dtype), x)


def _set(x: Tensor, rows: Tensor, value: Tensor) -> Tensor:
    """`value` at these rows, the same in each sequence."""
    here = torch.zeros(x.shape[-2], dtype=torch.bool)
    here[rows] = True
    return torch.where(here[:, None], value, x)


def _flat(x: Tensor, rows: Tensor, value: Tensor) -> Tensor:
    """`value` at rows counted over all sequences."""
    here = torch.zeros(x.numel() // D, dtype=torch.bool)
    here[rows] = True
    return torch.where(here.view(*x.shape[:-1], 1), value, x)


def _part(x: Tensor, value: Tensor, first: int, end: int) -> Tensor:
    """`value` at the rows from `first` up to `end` of each sequence."""
    return torch.cat([x[..., :first, :], value[..., first:end, :], x[..., end:, :]], -2)


def _first(x: Tensor, value: Tensor) -> Tensor:
    """`value` in place of the first entry of the first dimension."""
    return torch.cat([value[:1], x[1:]], 0)


def _features(x: Tensor, value: Tensor, first: int, end: int) -> Tensor:
    return torch.cat([x[..., :first], value[..., first:end], x[..., end:]], -1)


FUNCTIONS = """
def put(t, mask, value):
    t[mask] = value

def put_more(t, mask, value):
    t[mask] = t[mask] + value

def add_more(t, mask, value):
    t = t.clone()
    local = t[mask, :] + value
    t[mask, :] = local
    return t

def clear_first(t):
    t[..., :1, :].zero_()

def halve(t):
    return t.mul_(0.5)
"""

PUT = {
    "put": Form("x[M] = V[M]", lambda x, M, V: _where(x, M, V)),
    "put, clone": Form("x = x.clone()\nx[M] = V[M]", lambda x, M, V: _where(x, M, V)),
    "put itself and more": Form("x[M] = x[M] + V[M]", lambda x, M, V: _where(x, M, x + V)),
    "put itself and more, with all features": Form("x[M, :] = x[M, :] + V[M]", lambda x, M, V: _where(x, M, x + V)),
    "put itself and more, clone": Form(
        "x = x.clone()\nlocal = x[M, :].clone() + V[M]\nx[M, :] = local", lambda x, M, V: _where(x, M, x + V)
    ),
    "put +=": Form("x[M] += V[M]", lambda x, M, V: _where(x, M, x + V)),
    "put *=": Form("x[M] *= 0.5", lambda x, M: _where(x, M, x * 0.5)),
    "put -=": Form("x[M] -= V[M]", lambda x, M, V: _where(x, M, x - V)),
    "put half of itself": Form("x[M] = x[M] * 0.5", lambda x, M: _where(x, M, x * 0.5)),
    "put zero": Form("x[M] = 0.0", lambda x, M: _where(x, M, 0.0)),
    "put not": Form("x[~M] = V[~M]", lambda x, M, V: _where(x, ~M, V)),
    "put rows": Form("x[..., K, :] = V[..., K, :]", lambda x, K, V: _set(x, K, V)),
    "put rows +=": Form("x[..., K, :] += V[..., K, :]", lambda x, K, V: _set(x, K, x + V)),
    "put rows and more": Form("x[..., K, :] = V[..., K, :] + x[..., K, :]", lambda x, K, V: _set(x, K, x + V)),
    "put in one sequence": Form("x[0, K] = V[0, K]", lambda x, K, V: _first(x, _set(x, K, V)), dims=(3,)),
    "put in one sequence +=": Form("x[0, K] += V[0, K]", lambda x, K, V: _first(x, _set(x, K, x + V)), dims=(3,)),
    "put other rows": Form("x[..., 0, :] = x[..., 1, :]", lambda x: torch.cat([x[..., 1:2, :], x[..., 1:, :]], -2)),
    "put other rows +=": Form(
        "x[..., 0, :] += x[..., 1, :]", lambda x: torch.cat([x[..., :1, :] + x[..., 1:2, :], x[..., 1:, :]], -2)
    ),
    "put rows of another order": Form("x[..., P, :] = x.clone()", lambda x, P: x[..., torch.argsort(P), :]),
    "put slice": Form("x[..., 1:3, :] = V[..., 1:3, :]", lambda x, V: _part(x, V, 1, 3)),
    "put slice +=": Form("x[..., 1:3, :] += V[..., 1:3, :]", lambda x, V: _part(x, x + V, 1, 3)),
    "put last": Form("x[..., -1, :] = V[..., -1, :]", lambda x, V: _part(x, V, x.shape[-2] - 1, x.shape[-2])),
    "put feature": Form("x[..., 2] = 0.0", lambda x: _features(x, torch.zeros_like(x), 2, 3)),
    "put features +=": Form("x[..., :4] += V[..., :4]", lambda x, V: _features(x, x + V, 0, 4)),
    "index_put_": Form("x.index_put_((M,), V[M])", lambda x, M, V: _where(x, M, V)),
    "index_put": Form("x = x.index_put((M,), V[M])", lambda x, M, V: _where(x, M, V)),
    "index_put, accumulate": Form("x = x.index_put((M,), V[M], accumulate=True)", lambda x, M, V: _where(x, M, x + V)),
    "index_put_, accumulate": Form("x.index_put_((M,), V[M], accumulate=True)", lambda x, M, V: _where(x, M, x + V)),
    "index_put itself": Form("x = x.index_put((M,), x[M] + V[M])", lambda x, M, V: _where(x, M, x + V)),
    "put in aten": Form("torch.ops.aten.index_put_(x, [M], x[M] * 0.5)", lambda x, M: _where(x, M, x * 0.5)),
}

MASKED = {
    "masked_fill": Form("x = x.masked_fill(M[..., None], 0.5)", lambda x, M: _where(x, M, 0.5)),
    "masked_fill_": Form("x.masked_fill_(M[..., None], 0.0)", lambda x, M: _where(x, M, 0.0)),
    "masked_scatter": Form(
        "x = x.masked_scatter(M[..., None], V)",
        lambda x, M, V: torch.stack([column.masked_scatter(M, one) for column, one in _columns(x, M, V)], -1),
    ),
    "masked_scatter_": Form(
        "x.masked_scatter_(M[..., None].expand_as(x), V)",
        lambda x, M, V: torch.stack([column.masked_scatter(M, one) for column, one in _columns(x, M, V)], -1),
    ),
    "where": Form("x = torch.where(M[..., None], V, x)", lambda x, M, V: _where(x, M, V)),
    "where, and more": Form("x = torch.where(M[..., None], x + V, x)", lambda x, M, V: _where(x, M, x + V)),
    "where, or more": Form("x = x.where(M[..., None], x - V)", lambda x, M, V: _where(x, ~M, x - V)),
    "where, half": Form("x = torch.where(M[..., None], x, 0.5 * x)", lambda x, M: _where(x, ~M, 0.5 * x)),
    "times the mask": Form("x = x * M[..., None]", lambda x, M: x * M[..., None]),
    "plus masked": Form("x = x + V * M[..., None]", lambda x, M, V: x + V * M[..., None]),
    "plus masked, in place": Form("x += V * M[..., None]", lambda x, M, V: x + V * M[..., None]),
    "mask of the stream": Form("x[x.sum(-1) > 0] = 0.0", lambda x: _where(x, x.sum(-1) > 0, 0.0)),
    "clamp_": Form("x.clamp_(-1, 1)", lambda x: x.clamp(-1, 1)),
}

INDEX = "ix = K[:, None].expand(*x.shape[:-2], K.shape[0], 8)\n"


def _index(x: Tensor, rows: Tensor) -> Tensor:
    return rows[:, None].expand(*x.shape[:-2], rows.shape[0], D)


SCATTERED = {
    "scatter": Form(INDEX + "x = x.scatter(-2, ix, V[..., :K.shape[0], :])", lambda x, K, V: _placed(x, K, V)),
    "scatter_": Form(INDEX + "x.scatter_(-2, ix, V[..., :K.shape[0], :])", lambda x, K, V: _placed(x, K, V)),
    "scatter itself": Form(
        INDEX + "x = x.scatter(-2, ix, x.gather(-2, ix) + V[..., :K.shape[0], :])",
        lambda x, K, V: _placed(x, K, V, x),
    ),
    "scatter_add": Form(
        INDEX + "x = x.scatter_add(-2, ix, V[..., :K.shape[0], :])", lambda x, K, V: _placed(x, K, V, x)
    ),
    "scatter_add_": Form(INDEX + "x.scatter_add_(-2, ix, V[..., :K.shape[0], :])", lambda x, K, V: _placed(x, K, V, x)),
    "scatter_reduce sum": Form(
        INDEX + 'x = x.scatter_reduce(-2, ix, V[..., :K.shape[0], :], "sum")', lambda x, K, V: _placed(x, K, V, x)
    ),
    "scatter_reduce sum without itself": Form(
        INDEX + 'x = x.scatter_reduce(-2, ix, V[..., :K.shape[0], :], "sum", include_self=False)',
        lambda x, K, V: _placed(x, K, V),
    ),
    "scatter_reduce amax": Form(
        INDEX + 'x = x.scatter_reduce(-2, ix, V[..., :K.shape[0], :], "amax")',
        lambda x, K, V: torch.maximum(x, _placed(torch.full_like(x, -torch.inf), K, V)),
    ),
    "index_add": Form("x = x.index_add(-2, K, V[..., K, :])", lambda x, K, V: _set(x, K, x + V)),
    "index_add_": Form("x.index_add_(-2, K, V[..., K, :])", lambda x, K, V: _set(x, K, x + V)),
    "index_add_, twice": Form("x.index_add_(-2, K, V[..., K, :], alpha=2)", lambda x, K, V: _set(x, K, x + 2 * V)),
    "index_add itself": Form("x = x.index_add(-2, K, x[..., K, :])", lambda x, K: _set(x, K, x + x)),
    "index_copy": Form("x = x.index_copy(-2, K, V[..., K, :])", lambda x, K, V: _set(x, K, V)),
    "index_copy_": Form("x.index_copy_(-2, K, V[..., K, :])", lambda x, K, V: _set(x, K, V)),
    "index_copy_ itself": Form("x.index_copy_(-2, K, x[..., K, :] * 0.5)", lambda x, K: _set(x, K, x * 0.5)),
    "index_fill": Form("x = x.index_fill(-2, K, 0.5)", lambda x, K: _set(x, K, torch.full_like(x, 0.5))),
    "index_fill_": Form("x.index_fill_(-2, K, 0.0)", lambda x, K: _set(x, K, torch.zeros_like(x))),
    "slice_scatter": Form("x = x.slice_scatter(V[..., 1:3, :], -2, 1, 3)", lambda x, V: _part(x, V, 1, 3)),
    "select_scatter": Form("x = x.select_scatter(V[..., 0, :], -2, 0)", lambda x, V: _part(x, V, 0, 1)),
}


def _columns(x: Tensor, mask: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each feature, its values, and those that `masked_scatter` takes one after another for it."""
    taken = value.reshape(-1)[: int(mask.sum()) * D].view(-1, D)
    return list(zip(x.unbind(-1), taken.unbind(-1), strict=True))


def _placed(x: Tensor, rows: Tensor, value: Tensor, more: Tensor | float = 0.0) -> Tensor:
    """The first rows of `value`, and `more`, in the given rows."""
    spread = torch.zeros_like(x)
    for number, row in enumerate(rows.tolist()):
        spread = torch.cat([spread[..., :row, :], value[..., number : number + 1, :], spread[..., row + 1 :, :]], -2)
    return _set(x, rows, spread + more if isinstance(more, Tensor) else spread)


THROUGH_VIEWS = {
    "view of rows": Form("x[..., :2, :].add_(V[..., :2, :])", lambda x, V: _part(x, x + V, 0, 2)),
    "view of rows, kept": Form("y = x[..., :2, :]\ny += V[..., :2, :]", lambda x, V: _part(x, x + V, 0, 2)),
    "view of a view": Form("y = x[..., 1:, :]\ny = y[..., 1:, :]\ny.mul_(0.5)", lambda x: _part(x, x * 0.5, 2, 99)),
    "view of all rows, put": Form("x.view(-1, 8)[J] = V.view(-1, 8)[J]", lambda x, J, V: _flat(x, J, V)),
    "view of all rows, +=": Form("x.view(-1, 8)[J] += V.view(-1, 8)[J]", lambda x, J, V: _flat(x, J, x + V)),
    "view of all rows, index_add_": Form(
        "x.view(-1, 8).index_add_(0, J, V.view(-1, 8)[J])", lambda x, J, V: _flat(x, J, x + V)
    ),
    "view of all rows, one zero": Form("x.view(-1, 8)[3].zero_()", lambda x: _flat(x, torch.tensor([3]), 0 * x)),
    "view of all numbers": Form("x.view(-1)[3:9].zero_()", lambda x: _numbers(x, torch.zeros(6, dtype=x.dtype))),
    "transpose": Form("x.transpose(0, 1)[1] += V[:, 1]", lambda x, V: _part(x, x + V, 1, 2), dims=(3,)),
    "features first": Form("x.mT[..., 0, :] = 0.0", lambda x: _features(x, torch.zeros_like(x), 0, 1)),
    "narrow": Form("x.narrow(-2, 1, 2).copy_(V[..., 1:3, :])", lambda x, V: _part(x, V, 1, 3)),
    "narrow itself": Form(
        "x.narrow(-2, 1, 2).copy_(x[..., :2, :] * 1.0)", lambda x: _part(x, torch.cat([x[..., :1, :], x], -2), 1, 3)
    ),
    "select": Form("x.select(-2, 1).fill_(0.5)", lambda x: _part(x, torch.full_like(x, 0.5), 1, 2)),
    "unbind": Form("y = x.unbind(-2)[1]\ny.mul_(0.5)", lambda x: _part(x, x * 0.5, 1, 2)),
    "chunk": Form("a, b = x.chunk(2, -1)\nb.add_(V[..., 4:])", lambda x, V: _features(x, x + V, 4, 8)),
    "chunks exchanged": Form(
        "a, b = x.chunk(2, -1)\nc = a.clone()\na.copy_(b)\nb.copy_(c)",
        lambda x: torch.cat([x[..., 4:], x[..., :4]], -1),
    ),
    "split": Form("x.split(2, -2)[0].sub_(V[..., :2, :])", lambda x, V: _part(x, x - V, 0, 2)),
    "unflatten": Form("x.unflatten(-1, (2, 4))[..., 1, :].neg_()", lambda x: _features(x, -x, 4, 8)),
    "flatten": Form("x.flatten()[:3].zero_()", lambda x: _numbers(x, torch.zeros(3, dtype=x.dtype), 0)),
    "as_strided": Form("x.as_strided((2, 8), (8, 1)).mul_(0.5)", lambda x: _flat(x, torch.tensor([0, 1]), 0.5 * x)),
    "unsqueeze": Form("x.unsqueeze(0)[..., 0, :].zero_()", lambda x: _part(x, 0 * x, 0, 1)),
    "diagonal": Form("x.diagonal(0, -2, -1).zero_()", lambda x: x * (1 - torch.eye(x.shape[-2], D, dtype=x.dtype))),
    "first of all": Form("x[0].mul_(0.5)", lambda x: _first(x, 0.5 * x)),
    "detached": Form("x.detach().mul_(0.5)", lambda x: x * 0.5, differentiable=False),
    "data": Form("x.data.mul_(0.5)", lambda x: x * 0.5, differentiable=False),
    "data of a view": Form(
        "x.data[..., 0, :] += V[..., 0, :]", lambda x, V: _part(x, x + V, 0, 1), differentiable=False
    ),
    "without gradients": Form(
        "with torch.no_grad():\n    x[..., :1, :].mul_(2.0)", lambda x: _part(x, 2.0 * x, 0, 1), differentiable=False
    ),
    "an old alias": Form("y = x\ny.mul_(0.5)", lambda x: x * 0.5),
    "an old view is read": Form("y = x.view(-1, 8)\nx.mul_(0.5)\nx = y.view(x.shape)", lambda x: x * 0.5),
    "an old copy is read": Form(
        "y = x.clone()\nx.mul_(0.5)\nx = torch.cat([x[..., :1, :], y[..., 1:, :]], -2)",
        lambda x: _part(x, x * 0.5, 0, 1),
    ),
    "undone": Form("y = x[M]\nx[M] = 0.0\nx[M] = y", lambda x, M: x),
}


def _numbers(x: Tensor, values: Tensor, first: int = 3) -> Tensor:
    flat = x.reshape(-1)
    return torch.cat([flat[:first], values, flat[first + len(values) :]]).view(x.shape)


WHOLE = {
    "add_": Form("x.add_(V)", lambda x, V: x + V),
    "+=": Form("x += V", lambda x, V: x + V),
    "sub_": Form("x.sub_(V)", lambda x, V: x - V),
    "-=": Form("x -= V", lambda x, V: x - V),
    "mul_": Form("x.mul_(0.5)", lambda x: x * 0.5),
    "*=": Form("x *= 0.5", lambda x: x * 0.5),
    "div_": Form("x /= 2", lambda x: x / 2),
    "neg": Form("x = -x", lambda x: -x),
    "copy_": Form("x.copy_(x * 0.5)", lambda x: x * 0.5),
    "copy_ of a value": Form("x.copy_(V)", lambda x, V: V),
    "out": Form("torch.add(x, V, out=x)", lambda x, V: x + V),
    "add, alpha": Form("x = torch.add(x, V, alpha=0.5)", lambda x, V: x + 0.5 * V),
    "zero_": Form("x[..., :1, :].zero_()", lambda x: _part(x, 0 * x, 0, 1)),
    "addcmul_": Form("x.addcmul_(V, V)", lambda x, V: torch.addcmul(x, V, V)),
    "lerp_": Form("x.lerp_(V, 0.5)", lambda x, V: x.lerp(V, 0.5)),
    "features times": Form("x = x * V[..., :1, :]", lambda x, V: x * V[..., :1, :]),
}

IN_FUNCTIONS = {
    "function put": Form("put(x, M, V[M])", lambda x, M, V: _where(x, M, V)),
    "function put itself and more": Form("put_more(x, M, V[M])", lambda x, M, V: _where(x, M, x + V)),
    "function put into a copy": Form("x = add_more(x, M, V[M])", lambda x, M, V: _where(x, M, x + V)),
    "function on a view": Form("clear_first(x[..., 1:, :])", lambda x: _part(x, 0 * x, 1, 2)),
    "function that returns its argument": Form("x = halve(x)", lambda x: x * 0.5),
    "function that returns its argument, unused": Form("halve(x)", lambda x: x * 0.5),
    "function on a part that is returned": Form("y = halve(x[..., :2, :])", lambda x: _part(x, 0.5 * x, 0, 2)),
}

WRITES: dict[str, Form] = {**PUT, **MASKED, **SCATTERED, **THROUGH_VIEWS, **WHOLE, **IN_FUNCTIONS}
