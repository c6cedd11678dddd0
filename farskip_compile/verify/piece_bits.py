# SPDX-License-Identifier: Apache-2.0
"""Whether products of fewer rows give the same rows to the last bit, on the device at hand.

Contract: libraries choose kernels by shape, so this is measured, not proven: each different product that was cut is
computed whole and in pieces, on random numbers, once. It decides nothing; ranks may differ in what they find.

None is said where nothing was cut, sizes are symbols, or a product would take more than `MOST_BYTES`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx

from farskip_compile._compat.fakes import real_tensors
from farskip_compile.passes.graph import ops
from farskip_compile.verify.part import ROWS, RowRange
from farskip_compile.verify.pieces import CutProduct

MOST_BYTES = 1 << 30
"""Of the arguments and the result of a product."""


def same_bits(products: Sequence[CutProduct]) -> bool | None:
    """Whether all of `products` are equal to the rows of the whole ones."""
    found: dict[object, bool | None] = {}
    for one in products:
        key = _key(one)
        if key not in found:
            found[key] = _compare(one)
    answers = list(found.values())
    return None if not answers or None in answers else all(answers)


def _key(product: CutProduct) -> object:
    kinds = []
    for node in product.old.all_input_nodes:
        value = ops.tensor(node)
        if value is not None:
            part = product.cut.get(node)
            kinds.append((str((value.shape, value.stride(), value.dtype, value.device)), str(part and part.layout)))
    return product.old.target, tuple(kinds), product.result.rows


def _compare(product: CutProduct) -> bool | None:
    old = product.old
    values = {node: ops.tensor(node) for node in (*old.all_input_nodes, old)}
    sizes = [size for value in values.values() if value is not None for size in (*value.shape, *value.stride())]
    if any(value is None or not value.is_floating_point() for value in values.values()) or not all(
        isinstance(size, int) for size in sizes
    ):
        return None
    if sum(value.nbytes for value in values.values() if value is not None) > MOST_BYTES:
        return None
    try:
        with real_tensors():
            given = {node: _random(value) for node, value in values.items() if value is not None and node is not old}
            parts = given | {node: _rows(given[node], part) for node, part in product.cut.items()}
            whole, part = (_call(old, tensors) for tensors in (given, parts))
            return torch.equal(_rows(whole, product.result), part)
    except torch.OutOfMemoryError:
        return None


def _random(value: torch.Tensor) -> torch.Tensor:
    made = torch.empty_strided(tuple(value.shape), value.stride(), dtype=value.dtype, device=value.device)
    return made.normal_(generator=torch.Generator(value.device).manual_seed(0))


def _call(node: fx.Node, given: dict[fx.Node, torch.Tensor]) -> torch.Tensor:
    args, kwargs = fx.map_arg((node.args, node.kwargs), given.__getitem__)
    result: torch.Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return result


def _rows(whole: torch.Tensor, part: RowRange) -> torch.Tensor:
    """The rows of a part."""
    layout = part.layout_of(whole.shape)
    assert layout is not None
    dim = next(place for place, axes in enumerate(layout) if any(axis.token == ROWS for axis in axes))
    place = next(number for number, axis in enumerate(layout[dim]) if axis.token == ROWS)
    before, after = (math.prod(axis.size for axis in axes) for axes in (layout[dim][:place], layout[dim][place + 1 :]))
    apart = whole.reshape(*whole.shape[:dim], before, part.size, after, *whole.shape[dim + 1 :])
    rows = apart.narrow(dim + 1, part.low, part.high - part.low)
    return rows.reshape(*whole.shape[:dim], -1, *whole.shape[dim + 1 :]).contiguous()
