# SPDX-License-Identifier: Apache-2.0
"""What `read_rows` says of a graph, held against numbers: change one row of the stream, and see what else changes.

Contract: `disagreements` runs a graph of Dynamo node by node: as it is, and with one row of one residual value changed
while the others keep the values of the first run. A node that is said to be `FREE` may not change; one that is said to
hold `ROWS`, or decisions of rows about themselves, may change only where its layout says that this row is. Where a
decision is said to have a part in it, that is asked for with all integers as they were; a decision may not change then.
Of picked rows (`MOVED`, with a layout, none of them added up) each place may depend on one row of the residual value.
What is not touched is computed from the same numbers in the same order: it is the same to the bit. Shares no rule with
what it checks.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map_only

from farskip_compile.passes.graph import effects, ops
from farskip_compile.verify.rows.layout import RowLayout
from farskip_compile.verify.rows.state import RowDependence, RowFacts

FEW = 3
"""Of so few rows each is changed; of more the first, the last and one in the middle."""


class _Run(fx.Interpreter):
    """Keeps what every node computes; some values are replaced by given ones, integers by those of `decided`."""

    def __init__(
        self,
        module: fx.GraphModule,
        given: Mapping[fx.Node, Any],
        first: Mapping[fx.Node, Any] | None,
        decided: Mapping[fx.Node, Any] | None,
    ) -> None:
        super().__init__(module)
        self.given = given
        self.first = first
        self.decided = decided
        self.seen: dict[fx.Node, Any] = {}

    def run_all(self, inputs: Sequence[Any]) -> dict[fx.Node, Any]:
        self.args_iter = iter(_copy(inputs))
        for node in self.module.graph.nodes:
            if node.op == "output":
                continue
            value = self._value(node)
            if node in self.given:
                value = _copy(self.given[node])
            elif self.decided is not None:
                value = _with_decisions(value, self.decided[node])
            self.env[node] = value
            self.seen[node] = _copy(value)
        return self.seen

    def _value(self, node: fx.Node) -> Any:
        if effects.is_random(node):
            torch.manual_seed(0)  # what is random is random in the same way
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        try:
            return getattr(self, node.op)(node.target, args, kwargs)
        except (RuntimeError, IndexError):
            if self.first is None:
                raise
            return _copy(self.first[node])  # an index that is now out of bounds: nothing has changed here


def _copy(value: Any) -> Any:
    """As it is now: a later node may write to it."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    return tree_map_only(torch.Tensor, torch.clone, value) if isinstance(value, tuple | list) else value


def _with_decisions(value: Any, before: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(_with_decisions, value, before))
    if isinstance(value, torch.Tensor) and not value.is_floating_point() and not value.is_complex():
        return before.clone()
    return value


def disagreements(
    module: fx.GraphModule, inputs: Sequence[Any], rows: Mapping[fx.Node, RowFacts], residual: Collection[fx.Node]
) -> list[str]:
    """What is said of `rows`, and not so; some rows of each residual value are changed."""
    wrong: dict[str, None] = {}
    nodes = [node for node in module.graph.nodes if node not in residual and node.op != "output"]
    decisions = any(rows[node].state is RowDependence.DECISION for node in nodes)
    picked = _picked(nodes, rows)
    with torch.no_grad():
        first = _Run(module, {}, None, None).run_all(inputs)
        for value in residual:
            sizes = first[value].shape[:-1]
            touched: dict[fx.Node, torch.Tensor] = {}
            for row in _some_rows(sizes):
                where = {token: index for token, index in enumerate(row) if sizes[token] > 1}
                changed = first[value].clone()
                changed[row] = -changed[row] + torch.randn_like(changed[row])
                given = {**{one: first[one] for one in residual}, value: changed}
                for decided in (None, first) if decisions else (None,):
                    second = _Run(module, given, first, decided).run_all(inputs)
                    for node in nodes:
                        if not _agrees(rows[node], where, first[node], second[node], decided is not None):
                            said = f"{rows[node].state.name} {[[a.token for a in d] for d in rows[node].layout]}"
                            wrong[f"{node.format_node()}: {said}"] = None
                for node in picked:
                    places = _touched(rows[node].layout, first[node], second[node])
                    touched[node] = places.int() + touched.get(node, torch.zeros(()))
            for node, count in touched.items():
                if (count > 1).any():
                    wrong[f"{node.format_node()}: MOVED, but several rows are in one place"] = None
    return list(wrong)


def _picked(nodes: Sequence[fx.Node], rows: Mapping[fx.Node, RowFacts]) -> list[fx.Node]:
    """Picked rows that nothing else was put to: whether two picked values at one place are one row's is not claimed.

    Nor what a selection gives beside its indices: it is chosen anew in each run.
    """
    several: set[fx.Node] = set()
    for node in nodes:
        held = [arg for arg in node.all_input_nodes if rows[arg].state >= RowDependence.ROWS]
        if (
            ops.is_selection(node)
            or not several.isdisjoint(held)
            or (len(held) > 1 and any(rows[arg].state is RowDependence.MOVED for arg in held))
        ):
            several.add(node)
    return [
        node
        for node in nodes
        if node not in several
        and rows[node].state is RowDependence.MOVED
        and rows[node].layout
        and not rows[node].summed
        and isinstance(node.meta["example_value"], torch.Tensor)
    ]


def _touched(layout: RowLayout, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Which places, that have an index of rows, have changed."""
    changed = (before != after) & ~(before.isnan() & after.isnan())
    others = [place for place, dim in enumerate(layout) if not any(axis.token is not None for axis in dim)]
    return changed.any(others, keepdim=True) if others else changed


def _some_rows(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    every = list(itertools.product(*map(range, sizes)))
    yield from every if len(every) <= FEW else dict.fromkeys((every[0], every[len(every) // 2], every[-1]))


def _agrees(rows: RowFacts, where: Mapping[int, int], before: Any, after: Any, kept: bool) -> bool:
    """Whether this may have changed; `kept`: while all decisions were as before. `where` the row is among others."""
    if isinstance(before, tuple | list) and not isinstance(before, torch.Size):
        members = rows.parts or (rows,) * len(before)
        return all(_agrees(one, where, *pair, kept) for one, *pair in zip(members, before, after, strict=True))
    if rows.state > RowDependence.ROWS or (not kept and (rows.decided or rows == RowFacts(RowDependence.DECISION))):
        return True
    if not isinstance(before, torch.Tensor):
        return True  # a size
    if before.shape != after.shape:
        return rows.state is not RowDependence.ROWS  # as many as were decided; nothing is said of sizes
    if rows.state is RowDependence.ROWS and len(rows.layout) != before.dim():
        return False
    if torch.equal(before, after):
        return True
    changed = (before != after) & ~(before.isnan() & after.isnan())
    if rows.state is RowDependence.FREE or (rows.state is RowDependence.DECISION and (kept or not rows.layout)):
        return not changed.any()
    if set(where) - {axis.token for dim in rows.layout for axis in dim}:
        return not changed.any()  # entries of several rows
    return not (changed & ~_places(rows.layout, where, before.shape)).any()


def _places(layout: RowLayout, where: Mapping[int, int], shape: Sequence[int]) -> torch.Tensor:
    """Where a tensor of this layout holds the row."""
    mask = torch.ones(tuple(shape), dtype=torch.bool)
    for place, dim in enumerate(layout):
        sizes = [int(axis.size) for axis in dim] or [int(shape[place])]
        index = torch.arange(int(shape[place]))
        held = torch.ones(int(shape[place]), dtype=torch.bool)
        for axis, position in zip(dim, torch.unravel_index(index, sizes), strict=False):
            if axis.token in where:
                held &= position == where[axis.token]
        mask &= held.reshape([-1 if one == place else 1 for one in range(len(shape))])
    return mask
