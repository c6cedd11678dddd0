"""What `read_rows` says of a graph, held against numbers: change one row of the stream, and see what else changes.

Contract: `disagreements` runs a graph of Dynamo twice, node by node: as it is, and with one row of one residual value
changed while the others keep the values of the first run. A node that is said to be `FREE` may not change; one that is
said to hold `ROWS` may change only where its layout says that this row is. Shares no rule with what it checks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile.verify.rows.layout import Layout
from farskip_compile.verify.rows.state import Rows, State


class _Run(fx.Interpreter):
    """Keeps what every node computes; some values are replaced by given ones."""

    def __init__(self, module: fx.GraphModule, given: Mapping[fx.Node, Any]) -> None:
        super().__init__(module)
        self.given = given
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        torch.manual_seed(0)  # what is random is random in the same way
        result = super().run_node(n)
        if n in self.given:
            result = self.given[n]
        self.seen[n] = result.clone() if isinstance(result, torch.Tensor) else result
        return result


def disagreements(
    module: fx.GraphModule, inputs: Sequence[Any], rows: Mapping[fx.Node, Rows], residual: Collection[fx.Node]
) -> list[str]:
    """What is said of `rows`, and not so; the last row, and one in the middle, of each residual value are changed."""
    wrong = []
    with torch.no_grad():
        first = _run(module, inputs, {})
        for value in residual:
            *sizes, _ = first[value].shape
            for row in {tuple(size - 1 for size in sizes), tuple(size // 2 for size in sizes)}:
                changed = first[value].clone()
                changed[row] += torch.randn_like(changed[row])
                second = _run(module, inputs, {**{one: first[one] for one in residual}, value: changed})
                wrong += [
                    f"{node.name}: {rows[node].state.name} {rows[node].layout}, row {row} of {value.name}"
                    for node in module.graph.nodes
                    if node not in residual
                    and node.op != "output"
                    and not _agrees(rows[node], row, first[node], second[node])
                ]
    return wrong


def _run(module: fx.GraphModule, inputs: Sequence[Any], given: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
    copies = [one.clone() if isinstance(one, torch.Tensor) else one for one in inputs]
    run = _Run(module, given)
    run.run(*copies)
    return run.seen


def _agrees(rows: Rows, row: tuple[int, ...], before: Any, after: Any) -> bool:
    if isinstance(before, tuple | list):
        members = rows.parts or (rows,) * len(before)
        return all(_agrees(one, row, *pair) for one, *pair in zip(members, before, after, strict=True))
    if not isinstance(before, torch.Tensor) or rows.state not in (State.FREE, State.ROWS):
        return True
    changed = before != after
    if before.is_floating_point() or before.is_complex():
        changed &= ~((before - after).abs() <= 1e-9 * before.abs().nan_to_num(0, 0, 0).max().clamp_min(1.0))
        changed &= ~(before.isnan() & after.isnan())
    if rows.state is State.FREE:
        return not changed.any()
    return not (changed & ~_places(rows.layout, row, before.shape)).any()


def _places(layout: Layout, row: tuple[int, ...], shape: Sequence[int]) -> torch.Tensor:
    """Where a tensor of this layout holds the row."""
    mask = torch.ones(tuple(shape), dtype=torch.bool)
    for place, dim in enumerate(layout):
        sizes = [int(axis.size) for axis in dim] or [int(shape[place])]
        index = torch.arange(int(shape[place]))
        held = torch.ones(int(shape[place]), dtype=torch.bool)
        for axis, position in zip(dim, torch.unravel_index(index, sizes), strict=False):
            if axis.token is not None:
                held &= position == row[axis.token]
        mask &= held.reshape([-1 if one == place else 1 for one in range(len(shape))])
    return mask
