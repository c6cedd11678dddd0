# SPDX-License-Identifier: Apache-2.0
"""Write a region in pieces: each node of it once for each piece, on the rows of that piece.

In:    a graph and a `CutRegion` of it; the rows of each piece.
Out:   the same graph. The dispatch and the combine are launched once for each piece, in the order of the pieces, all
       dispatches where the dispatch was and all combines where the combine was, so that no dispatch queues up after a
       combine of the same region. Who splits a value of the region into the rows of the pieces, such as a layer that
       returns them in flight, is handed the pieces; for other readers outside of it they are concatenated again.
Never: changes what is outside of the region, or computes anything twice; cuts what does not hold rows.

Each new node on the rows of an old one names that in `meta["farskip_piece"]`, for the account.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile._compat import same_dim
from farskip_compile.passes.graph import ops
from farskip_compile.passes.pieces.axis import AxisSize, CutAxis
from farskip_compile.passes.pieces.region import CutRegion, Exchange
from farskip_compile.passes.pieces.results import Results
from farskip_compile.passes.pieces.rules import SIZED

PIECE = "farskip_piece"
"""In the meta of a node on some rows of an old node: the name of that node."""
RowSpan = tuple[int, int]


def cut(graph: fx.Graph, region: CutRegion, rows: Sequence[RowSpan], results: Results) -> None:
    """Cut `region` of `graph`, in place; `results` are those of the graph's other regions."""
    _Cut(graph, region, rows, results).run()


class _Cut:
    def __init__(self, graph: fx.Graph, region: CutRegion, rows: Sequence[RowSpan], results: Results) -> None:
        self.graph = graph
        self.results = results
        self.region = region
        self.rows = rows
        self.pieces: dict[fx.Node, list[fx.Node]] = {}
        """Of each value in the region."""
        self.sides: dict[tuple[fx.Node, str], list[fx.Node]] = {}
        """Of values from outside."""
        self.before: fx.Node | None = None
        """Where new nodes are put."""

    def run(self) -> None:
        region = self.region
        sent: fx.Node = region.combine.launch.args[0]  # type: ignore[assignment]
        arriving = region.axes[sent]
        old = [region.dispatch.launch, *region.dispatch.waits, *region.inside]
        self._exchange(region.dispatch, self._parts(region.dispatch.launch, region.axis))
        for node in region.inside:
            self._node(node)
        self._exchange(region.combine, self.pieces[sent])
        old += [region.combine.launch, *region.combine.waits]
        axes = {**region.axes, **dict.fromkeys(region.combine.waits, arriving)}
        inside = set(old)
        for node, axis in axes.items():
            self._hand_out(node, axis, inside)
            if any(user not in inside for user in node.users):
                self._join(node, axis, inside)
        for node in reversed(old):
            self.graph.erase_node(node)

    def _exchange(self, exchange: Exchange, sent: Sequence[fx.Node]) -> None:
        """Launch all pieces, and wait for each."""
        launch = exchange.launch
        self.before = launch
        ranks = exchange.ranks
        launched = []
        for one in sent:
            share = ops.tensor(one).shape[0] // ranks  # type: ignore[union-attr]
            splits = [share] * ranks
            launched.append(self._put(launch, (one, splits, splits, *launch.args[3:])))
        self.pieces[launch] = launched
        for wait in exchange.waits:
            self.before = wait
            self.pieces[wait] = [self._put(wait, (one, *wait.args[1:])) for one in launched]

    def _parts(self, launch: fx.Node, axis: CutAxis) -> list[fx.Node]:
        """What is sent, cut, each piece whole in memory."""
        self.before = launch
        parts = self._cut(launch.args[0], axis)  # type: ignore[arg-type]
        return [self._call(torch.ops.aten.clone.default, part, memory_format=torch.contiguous_format) for part in parts]

    def _node(self, node: fx.Node) -> None:
        """A node of the region, once for each piece."""
        self.before = node
        sides = {arg: self._side(arg, axis) for (reader, arg), axis in self.region.sides.items() if reader is node}
        axis = self.region.axes[node]
        made = []
        for number, (low, high) in enumerate(self.rows):
            here = {arg: self.pieces[arg][number] for arg in node.all_input_nodes if arg in self.pieces}
            here |= {arg: found[number] for arg, found in sides.items()}
            args = fx.map_arg(node.args, lambda arg, here=here: here.get(arg, arg))  # type: ignore[misc]
            if ops.op_name(node) in SIZED:
                args = (args[0], self._sizes(node, axis, high - low), *args[2:])
            made.append(self._put(node, args))
        self.pieces[node] = made

    def _sizes(self, node: fx.Node, axis: CutAxis, rows: int) -> list[Any]:
        """The sizes that a view of a piece names: as before, but for that of the rows."""
        sizes = list(node.args[1])  # type: ignore[arg-type]
        if sizes[axis.dim] != -1:
            length = axis.scaled(ops.tensor(node).shape, rows)[axis.dim]  # type: ignore[union-attr]
            sizes[axis.dim] = length if isinstance(length, int) else -1
        return sizes

    def _side(self, arg: fx.Node, axis: CutAxis) -> list[fx.Node]:
        key = arg, str(axis)  # a size that is a symbol has no hash
        if key not in self.sides:
            self.sides[key] = self._cut(arg, axis)
        return self.sides[key]

    def _cut(self, whole: fx.Node, axis: CutAxis) -> list[fx.Node]:
        """The rows of each piece of a whole value."""
        shape = list(ops.tensor(whole).shape)  # type: ignore[union-attr]
        alone, dim = axis.alone(shape, axis.size)
        source = whole if axis.is_alone() else self._reshape(whole, alone)
        parts = [self._call(torch.ops.aten.slice.Tensor, source, dim, low, high) for low, high in self.rows]
        if axis.is_alone():
            return parts
        return [
            self._reshape(part, axis.scaled(shape, high - low))
            for part, (low, high) in zip(parts, self.rows, strict=True)
        ]

    def _hand_out(self, node: fx.Node, axis: CutAxis, inside: set[fx.Node]) -> None:
        """Give the pieces to readers outside of the region that split `node` into just these."""
        shape, lengths = list(ops.tensor(node).shape), [high - low for low, high in self.rows]  # type: ignore[union-attr]
        for reader in [user for user in node.users if user not in inside]:
            is_view = ops.op_name(reader) in ops.VIEWS
            for split in list(reader.users) if is_view else [reader]:
                if not _splits(split, axis, shape, lengths):
                    continue
                for taken in list(split.users):
                    self.before = taken
                    piece = self.pieces[node][taken.args[1]]  # type: ignore[index]
                    taken.replace_all_uses_with(self._reshape(piece, ops.tensor(taken).shape))  # type: ignore[union-attr]
                    self.graph.erase_node(taken)
                self.graph.erase_node(split)
            if is_view and not reader.users:
                self.graph.erase_node(reader)

    def _join(self, node: fx.Node, axis: CutAxis, inside: set[fx.Node]) -> None:
        """Give the readers outside of the region the whole of `node`."""
        self.before = node.next
        shape = list(ops.tensor(node).shape)  # type: ignore[union-attr]
        parts = self.pieces[node]
        dim = axis.dim
        if not axis.is_alone():
            lengths = [high - low for low, high in self.rows]
            dim = axis.alone(shape, axis.size)[1]
            parts = [
                self._reshape(part, axis.alone(shape, length)[0]) for part, length in zip(parts, lengths, strict=True)
            ]
        whole = self._call(torch.ops.aten.cat.default, parts, dim)
        if not axis.is_alone():
            whole = self._reshape(whole, shape)
        whole.meta = {**node.meta, "val": whole.meta["val"]}
        for user in list(node.users):
            if user not in inside:
                user.replace_input_with(node, whole)

    def _put(self, old: fx.Node, args: Any) -> fx.Node:
        """`old` on other arguments."""
        new = self._create(old.target, tuple(args), dict(old.kwargs))  # type: ignore[arg-type]
        new.meta = {**old.meta, **new.meta, PIECE: old.name}
        return new

    def _reshape(self, node: fx.Node, shape: Sequence[AxisSize]) -> fx.Node:
        return self._call(torch.ops.aten.reshape.default, node, [one if isinstance(one, int) else -1 for one in shape])

    def _call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self._create(target, args, kwargs)

    def _create(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        assert self.before is not None
        with self.graph.inserting_before(self.before):
            new = self.graph.call_function(target, args, kwargs)
        values: Any = fx.map_arg((args, kwargs), ops.fake)  # type: ignore[arg-type]
        new.meta["val"] = self.results.of(target, *values)
        return new


def _splits(node: fx.Node, axis: CutAxis, shape: Sequence[AxisSize], lengths: Sequence[int]) -> bool:
    """Whether `node` splits a value of this shape, or a view of it, into so many rows of `axis` each."""
    if node.target is not torch.ops.aten.split_with_sizes.default:
        return False
    args: Sequence[Any] = [*node.args, 0]
    source, sizes, dim = args[:3]
    alone, place = axis.alone(shape, axis.size)
    viewed = ops.tensor(source).shape  # type: ignore[union-attr]
    same = len(viewed) == len(alone) and all(map(same_dim, viewed, alone))
    return same and bool(dim == place) and list(sizes) == list(lengths)
