# SPDX-License-Identifier: Apache-2.0
"""Which parameters read a value linearly: found by experiment, for any operator.

In:    a graph, what its nodes are for one batch, and a node.
Out:   `ValueReaders`: the parameters that read it, each with the axis that meets its features; the operators that read
       it in another way.
Never: knows an operator; changes a parameter or a value.

An operator *carries* a value if a change of basis of the value is the same change of its result: it moves, casts, sends
or adds up rows. A parameter *reads* it if what it computes of the changed value is what the parameter, changed,
computes of the value as it was. Both are tried out, with a change that is exact in floating point (`basis`).

Algorithm, node by node from the first one that uses the value, of those in a region:
1. Run the node on the changed value. Equal to before: it reads no number of it. Changed along one axis: it carries it.
2. Otherwise for each parameter that its other inputs are made of, and each axis as long as the value's last one: run
   what lies between with the changed parameter, on the value as it was. Equal: a reader.
3. Otherwise it reads the value in another way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from farskip_compile.healing.fold.basis import Basis, alike
from farskip_compile.healing.fold.lab import CannotTry, Lab
from farskip_compile.passes.graph.walk import walk_back


@dataclass(frozen=True)
class ParameterReader:
    """A parameter at one place of the graph."""

    parameter: fx.Node
    """Its placeholder."""
    axis: int
    """The one that meets the features of the value."""
    node: fx.Node
    """Which computes with both."""


@dataclass
class ValueReaders:
    """Who reads a value."""

    value: fx.Node
    readers: list[ParameterReader] = field(default_factory=list)
    carried: dict[fx.Node, int | None] = field(default_factory=dict)
    """The nodes that hold the value's rows, with the axis of its features; None: a tuple of such."""
    others: list[fx.Node] = field(default_factory=list)
    """The nodes that read it in another way."""
    quantised: list[fx.Node] = field(default_factory=list)
    """Parameters that meet it, and whose numbers are not plain floating-point ones."""


def find_readers(
    lab: Lab, value: fx.Node, region: Collection[fx.Node], parameters: Collection[fx.Node]
) -> ValueReaders:
    """Who in `region` (in graph order) reads `value`; `parameters` are placeholders."""
    now = lab.value(value)
    basis = Basis.of_size(now.shape[-1], now.device)
    found = ValueReaders(value, carried={value: -1})
    changed: dict[fx.Node, Any] = {value: basis.changed(now, -1)}
    for node in region:
        inputs = [arg for arg in node.all_input_nodes if arg in found.carried]
        if node is value or not inputs:
            continue
        try:
            before, after = lab.result(node), lab.run(node, changed)
        except CannotTry:
            found.others.append(node)
            continue
        if lab.agree(_same(before, after)):  # 1
            continue
        axis = _axis(lab, basis, before, after)
        if axis != ():
            found.carried[node], changed[node] = axis, after  # type: ignore[assignment]
            for base in lab.written_by(node):
                found.carried[base], changed[base] = axis, after  # type: ignore[assignment]
            continue
        reader = next(_reading(lab, basis, node, after, parameters, found.quantised), None)  # 2
        if reader is not None:
            found.readers.append(reader)
        else:
            found.others.append(node)  # 3
    return found


def is_plain(value: torch.Tensor) -> bool:
    """Whether these are floating-point numbers that are there as such."""
    return type(value) in (torch.Tensor, nn.Parameter) and value.is_floating_point()


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, tuple | list):
        return all(map(_same, before, after))
    if isinstance(before, torch.Tensor):
        return torch.equal(before, after)
    return bool(before == after)


def _axis(lab: Lab, basis: Basis, before: Any, after: Any) -> int | tuple[()] | None:
    """The axis along which a result is changed; None for a tuple of changed results; () if it is another one."""
    if isinstance(before, tuple | list):
        parts = [isinstance(one, torch.Tensor) and one.is_floating_point() for one in before]
        fits = all(
            basis.axis_of(one, other) is not None if part else _same(one, other)
            for one, other, part in zip(before, after, parts, strict=True)
        )
        return None if lab.agree(fits and any(parts)) else ()
    if not isinstance(before, torch.Tensor) or not before.is_floating_point():
        return ()
    for axis in range(before.dim() - 1, -1, -1):  # on all ranks, however many rows each has
        fits = before.shape[axis] == len(basis.source) and alike(basis.changed(before, axis), after)
        if lab.agree(fits):
            return axis
    return ()


def _reading(
    lab: Lab,
    basis: Basis,
    node: fx.Node,
    wanted: Any,
    parameters: Collection[fx.Node],
    quantised: list[fx.Node],
) -> Iterator[ParameterReader]:
    """The parameters that read the value at `node`, whose result for the changed value is `wanted`."""
    if not isinstance(wanted, torch.Tensor) or not wanted.is_floating_point():
        return
    between = list(walk_back([node], lambda one: one is not node and one not in lab.weights))
    ends = {arg for one in between for arg in one.all_input_nodes if arg.op == "placeholder" and arg in parameters}
    for parameter in sorted(ends, key=lab.course.place.__getitem__):
        now = lab.value(parameter)
        if not is_plain(now):
            quantised.append(parameter)
            continue
        path = lab.path(parameter, between)
        for axis, size in enumerate(now.shape):
            if not lab.agree(size == len(basis.source)):
                continue
            then = lab.run_path([*path, node], {parameter: basis.folded(now, axis)})
            if lab.agree(alike(then, wanted)):
                yield ParameterReader(parameter, axis, node)
