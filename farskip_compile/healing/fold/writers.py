# SPDX-License-Identifier: Apache-2.0
"""Which parameters write a term linearly: found by experiment, for any operator.

In:    a graph, what its nodes are for one batch, the node that holds a term.
Out:   the parameters that, changed together along one axis each, change the term's basis; none if a part of the term
       comes from elsewhere.
Never: knows an operator; changes a parameter or a value.

Algorithm, for the parameters that the term is computed from, and each of their axes as long as the term is wide:
1. What a parameter contributes is the difference that zeros in its place make. It is a *writer* along an axis if the
   parameter, changed there, contributes the same in the changed basis.
2. All writers changed at once must give the whole term in the changed basis.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import fx

from farskip_compile.healing.fold.basis import Basis, alike
from farskip_compile.healing.fold.lab import CannotTry, Lab
from farskip_compile.healing.fold.readers import is_plain


@dataclass(frozen=True)
class ParameterWriter:
    """A parameter."""

    parameter: fx.Node
    """Its placeholder."""
    axis: int
    """The one that becomes the features of the term."""


def find_writers(
    lab: Lab, term: fx.Node, region: Collection[fx.Node], parameters: Collection[fx.Node]
) -> tuple[ParameterWriter, ...]:
    """What in `region` (in graph order) writes `term`; `parameters` are placeholders."""
    now = lab.value(term)
    basis = Basis.of_size(now.shape[-1], now.device)
    wanted = basis.changed(now, -1)
    found = tuple(_writers(lab, basis, term, region, parameters))  # 1
    changed = {one.parameter: basis.changed(lab.value(one.parameter), one.axis) for one in found}
    if not found or not lab.agree(alike(lab.run_path(_path(lab, [*changed], region, term), changed), wanted)):  # 2
        return ()
    return found


def _writers(
    lab: Lab, basis: Basis, term: fx.Node, region: Collection[fx.Node], parameters: Collection[fx.Node]
) -> Iterator[ParameterWriter]:
    now = lab.value(term)
    for parameter in parameters:
        value = lab.value(parameter)
        if not is_plain(value):
            continue
        axes = [axis for axis, size in enumerate(value.shape) if lab.agree(size == now.shape[-1])]
        path = _path(lab, [parameter], region, term) if axes else []
        if not path or path[-1] is not term:
            continue
        try:
            without = lab.run_path(path, {parameter: torch.zeros_like(value)})
        except CannotTry:
            continue
        own = basis.changed(now - without, -1)
        for axis in axes:
            then = lab.run_path(path, {parameter: basis.changed(value, axis)})
            if lab.agree(alike_beside(then - without, own, now)):
                yield ParameterWriter(parameter, axis)
                break


def alike_beside(one: torch.Tensor, other: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether two differences of values as large as `whole` are the same, and not zero."""
    return bool(one.abs().max() > 0) and alike(torch.stack([one, whole]), torch.stack([other, whole]))


def _path(lab: Lab, starts: Collection[fx.Node], region: Collection[fx.Node], end: fx.Node) -> list[fx.Node]:
    """The nodes of `region` that depend on one of `starts`, up to `end`, in graph order."""
    found = set(starts)
    path = []
    for node in region:
        if any(arg in found for arg in node.all_input_nodes):
            found.add(node)
            path.append(node)
        if node is end:
            break
    return path
