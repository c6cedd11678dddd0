# SPDX-License-Identifier: Apache-2.0
"""Proof of the pieces: each value that is left of the old graph is what it was, computed from rows in pieces.

Contract: compares the graph before (a record) with the graph after; shares no code with the pass that cut it. What the
pass says of a node, of which old node it computes rows, is a hint to be proven, not a fact. Linear in the graph.

Algorithm: in the order of the new graph, each node gets a `RowRange`: which rows of which old value it is.
1. An old node that is left makes the same call on the same old values; it is itself, whole. One that nobody edited
   takes the same nodes, which are old ones then.
2. `reshape`, `slice`, `clone` and `cat` move the rows of a part, take some, or put neighbours together. All rows, in
   the old shape, are the old value.
3. A piece of an exchange sends the same rows of each rank's equal share. Its wait gives them.
4. Any other piece makes the call of the old node on parts of its arguments that are the same rows, or on whole
   arguments; and of that operator the account of rows (`verify.rows`) says that each row depends on the same row alone.
5. An old node that is gone did nothing but compute, or communicate; each of its launches is there once for each piece.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

from torch import fx

from farskip_compile._compat import same_dim
from farskip_compile.passes.graph import comms, effects, ops
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.verify.claims import compare_arguments, compare_calls
from farskip_compile.verify.part import ROWS, VIEWS, RowRange, error, tensor
from farskip_compile.verify.rows import layout as layouts
from farskip_compile.verify.rows.layout import RowAxis, RowLayout
from farskip_compile.verify.rows.rules import apply
from farskip_compile.verify.rows.state import FREE, RowDependence, RowFacts

HINT = "farskip_piece"
"""Key of a node's `meta`: the old node of which it is said to compute rows."""
SIZED = VIEWS | {"expand"}
"""Operators that name the shape of their result."""


@dataclass(frozen=True)
class CutProduct:
    """A product of matrices on some rows."""

    old: fx.Node
    """The whole product, in the graph as it was."""
    cut: Mapping[fx.Node, RowRange]
    """Those of its arguments that are cut."""
    result: RowRange


def verify_pieces(graph: fx.Graph, before: GraphSnapshot) -> list[CutProduct]:
    """Check that `graph` computes what it did when `before` was recorded; returns the products that were cut.

    Raises:
        VerificationError: naming the first node that can't be shown to be what it should.
    """
    unchanged = before.unchanged(graph)
    known = {node.name for node in unchanged} - {node.meta.get(HINT) for node in graph.nodes}
    account = _Account(graph, before.restore(without=known), unchanged)
    account.check()
    return account.products


class _Account:
    def __init__(self, graph: fx.Graph, old: fx.Graph, unchanged: Set[fx.Node]) -> None:
        self.graph = graph
        self.old = {node.name: node for node in old.nodes}
        self.unchanged = unchanged
        self.parts: dict[fx.Node, RowRange] = {}
        self.launched: dict[str, list[RowRange]] = defaultdict(list)
        """By old launch: the rows of its pieces."""
        self.products: list[CutProduct] = []

    def check(self) -> None:
        """Do steps 1 to 5."""
        for node in self.graph.nodes:
            self.parts[node] = self._part(node)
        left = {node.name for node in self.graph.nodes}
        for name, node in self.old.items():
            if name not in left:
                self._check_gone(node)
            elif name in self.launched:
                raise error(node, "it is launched whole and in pieces")

    def _part(self, node: fx.Node) -> RowRange:
        if node in self.unchanged:
            return RowRange(node.name)
        old = self.old.get(node.name)
        if old is not None:
            compare_calls(node, old, self._compare, error)
            return RowRange(node.name)
        hint = node.meta.get(HINT)
        if hint in self.old:
            return self._piece(node, self.old[hint])
        name, source = ops.op_name(node), node.args[0] if node.args else None
        if name == "cat":
            return self._joined(node)
        if not isinstance(source, fx.Node) or name not in VIEWS | {"slice", "clone"}:
            raise error(node, "it was not in the graph before")
        if tensor(node).dtype != tensor(source).dtype:
            raise error(node, "it takes the bits for numbers of another type")
        return self._sliced(node, source) if name == "slice" else self.parts[source]

    # 1

    def _compare(self, new: Any, old: fx.Node, node: fx.Node, cut: dict[fx.Node, RowRange] | None = None) -> None:
        """Check that an argument of `node` is the whole of an old value, or a part if parts are collected in `cut`.

        Each old argument is given always in the same part, or always whole.
        """
        part = self.parts[new] if isinstance(new, fx.Node) else None
        if part is not None and part.of != old.name and part.is_taken_by(old, new):
            return
        if part is None or part.of != old.name:
            raise error(node, f"it is given {getattr(new, 'name', new)!r} in place of {old.name!r}")
        if self._is_whole(new, old):
            if cut is not None and old in cut:
                raise error(node, f"it is given {old.name!r} both whole and in part")
        elif cut is None or not part.size or cut.setdefault(old, part) != part:
            raise error(node, f"it is not given the whole of {old.name!r}")
        else:
            self._layout(new, old, part)

    def _is_whole(self, node: fx.Node, old: fx.Node) -> bool:
        part = self.parts[node]
        if node.name == old.name:
            return True
        return bool(part.size) and part.is_whole and ops.same_shape(tensor(node), tensor(old))

    def _layout(self, node: fx.Node, old: fx.Node, part: RowRange) -> RowLayout:
        """Where the rows are in `old`, of which `node` is a part: it must have the shape of that with fewer rows."""
        shape, whole = tensor(node).shape, tensor(old).shape
        layout = part.layout_of(whole)
        if layout is None or len(shape) != len(whole):
            raise error(node, f"it has the rows of {old.name!r} elsewhere than that")
        for length, before, dim in zip(shape, whole, layout, strict=True):
            rows = [part.high - part.low if axis.token == ROWS else axis.size for axis in dim]
            if not same_dim(length, math.prod(rows) if layouts.tokens(dim) else before):
                raise error(node, f"it does not have the shape of {part.high - part.low} rows of {old.name!r}")
        return layout

    # 2

    def _sliced(self, node: fx.Node, source: fx.Node) -> RowRange:
        part, shape = self.parts[source], tensor(source).shape
        if part.size or node.kwargs or len(node.args) != 4:
            raise error(node, "it takes rows in a way that is not known")
        dim, low, high = node.args[1:]
        size = shape[dim] if isinstance(dim, int) and 0 <= dim < len(shape) else None
        if not (isinstance(size, int) and isinstance(low, int) and isinstance(high, int) and 0 <= low < high <= size):
            raise error(node, "it takes rows that are not there")
        layout = [*layouts.features(shape)]
        layout[dim] = (RowAxis(ROWS, size),)  # type: ignore[index]
        return RowRange(part.of, low, high, size, tuple(layout))

    def _joined(self, node: fx.Node) -> RowRange:
        sources: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
        dim = node.args[1] if len(node.args) > 1 else 0
        parts = [self.parts[one] for one in sources]
        for one, other in pairwise(parts):
            if (one.of, one.high, one.size) != (other.of, other.low, other.size):
                raise error(node, f"it puts together rows {one.rows} of {one.of} and {other.rows} of {other.of}")
        for source, part in zip(sources, parts, strict=True):
            whole = [part.size if place == dim else length for place, length in enumerate(tensor(source).shape)]
            layout = part.layout_of(whole) if part.size else None
            if layout is None or layout[dim] != (RowAxis(ROWS, part.size),):  # type: ignore[index]
                raise error(node, "its parts do not have their rows where they are put together")
        return replace(parts[0], high=parts[-1].high)

    # 3, 4

    def _piece(self, node: fx.Node, old: fx.Node) -> RowRange:
        if node.target != old.target or effects.mutated_args(old) or effects.is_random(old):
            raise error(node, f"it can't be rows of {old.name!r}")
        cut: dict[fx.Node, RowRange] = {}
        free = self._free_places(old)  # sizes, which the shapes show
        for place, arguments in enumerate([*zip(node.args, old.args, strict=True), (node.kwargs, old.kwargs)]):
            if place not in free:
                compare_arguments(*arguments, node, partial(self._compare, cut=cut), error)
        part = next(iter(cut.values()), None)
        if part is None or any(one.rows != part.rows for one in cut.values()):
            raise error(node, "its arguments are not the same rows")
        if comms.is_collective(old):
            found = self._exchanged(node, old, part)
        elif comms.is_wait(old):
            found = replace(part, of=old.name)
        else:
            found = RowRange(old.name, *part.rows, self._by_rule(node, old, cut))
            if ops.is_matmul(old):
                self.products.append(CutProduct(old, cut, found))
        self._layout(node, old, found)
        return found

    @staticmethod
    def _free_places(old: fx.Node) -> tuple[int, ...]:
        if comms.is_collective(old):
            return (1, 2)
        names_a_shape = ops.op_name(old) in SIZED and len(old.args) > 1 and isinstance(old.args[1], tuple | list)
        return (1,) if names_a_shape else ()

    @staticmethod
    def _by_rule(node: fx.Node, old: fx.Node, cut: Mapping[fx.Node, RowRange]) -> RowLayout:
        def given(arg: object) -> RowFacts:
            part = cut.get(arg) if isinstance(arg, fx.Node) else None
            layout = part.layout_of(tensor(arg).shape) if part is not None else None
            return FREE if layout is None else RowFacts(RowDependence.ROWS, layout)

        found = apply(old, given)
        if found.state is not RowDependence.ROWS:
            raise error(node, f"rows of {old.name!r} ({ops.op_name(old)}) depend on other rows than their own")
        return found.layout

    def _exchanged(self, node: fx.Node, old: fx.Node, part: RowRange) -> RowRange:
        ranks, sent = _equal_shares(old), tensor(old.args[0])
        first = (part.layout_of(sent.shape) or ((),))[0]
        blocks = first[0].size if first and first[0].token is None else 1
        inside = ROWS not in layouts.tokens(first) or (isinstance(blocks, int) and blocks % max(ranks, 1) == 0)
        if not comms.is_all_to_all(old) or not ranks or not inside or _equal_shares(node) != ranks:
            raise error(node, "its rows are not inside of each rank's share")
        length = tensor(node.args[0]).shape[0]
        if not all(same_dim(sum(split), length) for split in node.args[1:3]):  # type: ignore[arg-type]
            raise error(node, "it sends another number of rows than it has")
        found = replace(part, of=old.name)
        self.launched[old.name].append(found)
        return found

    # 5

    def _check_gone(self, old: fx.Node) -> None:
        if comms.is_collective(old):
            rows = [part.rows for part in self.launched[old.name]]
            ends = [0, *(high for _, high, _ in rows)]
            if not rows or ends[-1] != rows[0][2] or ends[:-1] != [low for low, _, _ in rows]:
                raise error(old, f"its pieces do not send all rows, once and in order: {rows}")
        elif not comms.is_wait(old) and not effects.is_pure(old):
            raise error(old, "it is no longer done")


def _equal_shares(launch: fx.Node) -> int:
    """How many ranks an exchange has equal shares of; 0: it has none."""
    splits = launch.args[1:3]
    if len(splits) < 2 or not all(isinstance(split, list | tuple) for split in splits):
        return 0
    sizes = {size for split in splits for size in split}  # type: ignore[union-attr]
    lengths = {len(split) for split in splits}  # type: ignore[arg-type]
    return lengths.pop() if len(sizes) == 1 == len(lengths) and all(isinstance(one, int) for one in sizes) else 0
