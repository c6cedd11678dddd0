# SPDX-License-Identifier: Apache-2.0
"""A region once for each piece of its rows.

In:    a region; how many pieces.
Out:   the graph, in which each node of the region is there once for each piece, at its old place: first those of the
       first piece. So all dispatches are launched before the first combine.
Never: keeps a size for a fact that was true of the whole alone: fake tensors run through each copy, and sizes that data
       decides are read anew; gathers the same tokens twice.

Algorithm:
1. What a region reads from outside is cut along its rows (`narrow`), or the same for all pieces.
2. Each node is copied with the copies of what it reads. Sizes that count rows are scaled (`_scaled`).
3. Whoever reads rows in order from outside gets the copies joined. What reads rows out of order (counts, for
   statistics) keeps the whole: then what it needs stays, and is computed twice.
4. What nobody reads any more is gone, with the checks of its sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile._compat.fake import bindings_of, fake_mode_of
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.walk import fresh_like, spread
from farskip_compile.passes.pieces.axis import intervals
from farskip_compile.passes.pieces.notes import note
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens.order import MADE, row_dim, rows_of
from farskip_compile.passes.pieces.tokens.region import CopiedRegion
from farskip_compile.passes.pieces.tokens.sizes import RowCounts

CHECKS = frozenset(["_assert_scalar", "_assert_async", "_check", "_check_is_size"])
EXPANDS = frozenset(["expand", "broadcast_to"])
PLAIN = frozenset(["zeros", "ones", "empty", "full", "arange"])
"""They are given no tensor."""


def copy_for_pieces(graph: fx.Graph, region: CopiedRegion, pieces: int) -> None:
    """Cut `region` in place.

    Raises:
        NotSeparableError: a copy can't be made for fewer rows. The graph is to be thrown away then.
    """
    copies = _Copies(graph, region, pieces)
    copies.make()
    copies.join()
    copies.clean()


class _Copies:
    def __init__(self, graph: fx.Graph, region: CopiedRegion, pieces: int) -> None:
        self.graph = graph
        self.region = region
        self.nodes = region.nodes()
        self.units = region.units()
        if self.units < pieces:
            raise NotSeparableError(region.launches[0], f"its tokens come in {self.units} equal parts")
        self.spans = intervals(self.units, pieces)
        self.of: dict[fx.Node, list[fx.Node]] = {}
        """The copies of a node; of a value from outside its pieces."""
        self.cut = set(region.cut())
        self.mode = fake_mode_of(value for node in self.nodes if (value := ops.tensor(node)) is not None)
        self.checks = _checks(region.window.nodes())
        self.kept: set[fx.Node] = set()
        """Nodes of the region that stay, as they are."""
        self.gathered = RowCounts(region.gathered, region.inside) if region.gathered else None

    # 1, 2

    def make(self) -> None:
        for node in self.nodes:
            with self.graph.inserting_before(node):
                for arg in node.all_input_nodes:
                    if arg in self.cut and arg not in self.of:
                        self.of[arg] = [self._narrow(arg, *span) for span in self.spans]
                self.of[node] = [self._copy(node, number) for number in range(len(self.spans))]

    def _narrow(self, node: fx.Node, low: int, high: int) -> fx.Node:
        value = ops.tensor(node)
        assert value is not None
        dim = row_dim(value)
        assert dim is not None
        each = int(value.shape[dim]) // self.units
        args = (node, dim, low * each, (high - low) * each)
        return self._put(node, "call_function", torch.narrow, args, {})

    def _copy(self, node: fx.Node, number: int) -> fx.Node:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._for(number))
        op, target = node.op, node.target
        rows = self._rows(node, number)
        name = ops.op_name(node)
        if self.gathered is not None and node in self.region.inside:
            low, high = self.spans[number]
            piece = self.gathered.whole // self.units * (high - low)
            op, target, args, kwargs = self.gathered.args(node, args, kwargs, piece)
        elif rows is not None and name in ops.VIEWS and self._counts_rows(node, args):
            op, target, args, kwargs = "call_function", torch.reshape, (args[0], self._shape(node, rows)), {}
        elif rows is not None and (name in EXPANDS or self._has_rows(node)):
            args = _scaled(args, self._shape(node, rows), rows_of(node), 0 if name in PLAIN else 1)
        new = self._put(node, op, target, args, kwargs)
        if node in self.region.launches:
            note(new, str(len(self.spans)), self.region.along)
        return new

    def _for(self, number: int) -> Any:
        return lambda arg: self.of[arg][number] if arg in self.of else arg

    def _put(self, like: fx.Node, op: str, target: Any, args: Any, kwargs: Any) -> fx.Node:
        value = self._value(like, op, target, args, kwargs)
        new = self.graph.create_node(op, target, args, kwargs)
        new.meta = {key: value for key, value in like.meta.items() if key not in ("example_value", "unbacked_bindings")}
        new.meta["example_value"] = value
        if self.mode is not None and (bindings := bindings_of(self.mode, value)):
            new.meta["unbacked_bindings"] = bindings
        return new

    def _value(self, node: fx.Node, op: str, target: Any, args: Any, kwargs: Any) -> object:
        given, named = fx.map_arg((args, kwargs), ops.fake)  # type: ignore[arg-type]
        if self.mode is None:
            raise NotSeparableError(node, "shapes are not known")
        try:
            with self.mode, torch.no_grad():
                if op == "call_method":
                    return getattr(given[0], str(target))(*given[1:], **named)
                return target(*given, **named)
        except Exception as error:  # whatever an operator says of shapes that do not fit
            text = str(error).split("\n")[0]
            raise NotSeparableError(node, f"it can't be done with fewer rows: {text}") from error

    # Sizes

    def _rows(self, node: fx.Node, number: int) -> int | None:
        """How many rows a piece has of a value that has some for each part; None if that can't be said."""
        whole = rows_of(node)
        low, high = self.spans[number]
        return None if whole is None or whole % self.units else whole // self.units * (high - low)

    def _shape(self, node: fx.Node, rows: int) -> list[int]:
        value = ops.tensor(node)
        assert value is not None
        dim = row_dim(value)
        return [rows if place == dim else int(size) for place, size in enumerate(value.shape)]

    @staticmethod
    def _counts_rows(node: fx.Node, args: Any) -> bool:
        """Whether a view of a piece has other sizes: there are fewer entries, or as many as data decides."""
        was, now = ops.tensor(node.all_input_nodes[0]), ops.tensor(args[0])
        assert was is not None
        assert now is not None
        if all(isinstance(size, int) for size in (*was.shape, *now.shape)):
            return was.numel() != now.numel()
        sizes = [one for arg in args[1:] for one in (arg if isinstance(arg, list | tuple) else [arg])]
        return ops.op_name(node) in ("view", "reshape") and all(type(size) is int and size >= 0 for size in sizes)

    @staticmethod
    def _has_rows(node: fx.Node) -> bool:
        """Whether a new tensor has a row for each token, as far as its form tells: not an entry for each expert."""
        value, name = ops.tensor(node), ops.op_name(node)
        made = name in MADE and not name.endswith("_like")
        return made and value is not None and (value.dim() > 1 or name == "arange")

    # 3

    def join(self) -> None:
        """Give whoever reads the region from outside what it reads now."""
        own, home = set(self.nodes), self._home()
        copies = {copy for made in self.of.values() for copy in made}
        readers = {node: [u for u in node.users if u not in copies and u not in self.checks] for node in self.nodes}
        queue = [node for node in self.nodes if node not in home and not own.issuperset(readers[node])]
        while queue:
            node = queue.pop()
            if node not in self.kept:
                self.kept.add(node)
                needed = (*node.all_input_nodes, *self.region.window.facts.writers.get(node, ()))
                queue += [one for one in needed if one in own and one not in home]
        twice = next((node for node in self.region.launches if node in self.kept and self.gathered is not None), None)
        if twice is not None:
            raise NotSeparableError(
                twice, "what it gathers of all tokens is read otherwise, and would be gathered twice"
            )
        for node in self.nodes:
            outside = [user for user in readers[node] if user not in own or user in self.kept]
            if node in home and outside:
                joined = self._joined(node)
                for user in outside:
                    user.replace_input_with(node, joined)

    def _home(self) -> set[fx.Node]:
        """Values whose rows are those of tokens, in order."""
        inside = self.region.inside
        if self.gathered is not None:  # a sum that was scattered has the rows of this rank's tokens
            back = {
                node for node in inside if comms.is_scatter(node) or any(map(comms.is_scatter, node.all_input_nodes))
            }
            return {node for node in self.nodes if node in back or (node not in inside and self._in_order(node))}
        first = self.region.launches[0].args[1:3] if self.region.launches else ()
        exchanges = filter(comms.is_all_to_all, self.region.launches)
        back = self.region.window.after([one for one in exchanges if one.args[1:3] != first])
        found = (node for node in self.nodes if node not in inside or (node in back and ops.is_floating(node)))
        return set(filter(self._in_order, found))

    @staticmethod
    def _in_order(node: fx.Node) -> bool:
        return rows_of(node) is not None and ops.op_name(node) not in MADE

    def _joined(self, node: fx.Node) -> fx.Node:
        value = ops.tensor(node)
        assert value is not None
        with self.graph.inserting_after(node):
            new = self.graph.call_function(torch.cat, (list(self.of[node]), row_dim(value)))
        new.meta = {**node.meta, "example_value": fresh_like(value)}
        self.region.window.facts.took_place(new, node)
        return new

    # 4

    def clean(self) -> None:
        """Erase what nobody reads any more."""
        dead = set(self.nodes) - self.kept
        nodes = self.region.window.nodes()
        dead |= spread(nodes, dead.__contains__) & self.checks
        for node in reversed(nodes):
            if node in dead:
                if node.users:
                    raise NotSeparableError(node, f"{next(iter(node.users)).name} still reads it")
                self.graph.erase_node(node)


def _checks(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Assertions on sizes, and what is computed for them alone."""
    found: set[fx.Node] = set()
    for node in reversed(nodes):
        value = ops.fake(node)
        number = isinstance(value, torch.SymInt | torch.SymBool | torch.SymFloat | bool | int)
        for_them = node.op == "call_function" and number and node.users and all(user in found for user in node.users)
        if ops.op_name(node) in CHECKS or for_them:
            found.add(node)
    return found


def _scaled(args: Any, shape: Sequence[int], whole: int | None, first: int) -> Any:
    """The arguments, with the size `whole` replaced by that of `shape`, where they differ; sizes begin at argument
    `first`, or are a list there."""
    listed = len(args) > first and isinstance(args[first], list | tuple)
    sizes = list(args[first] if listed else args[first:])
    for dim, size in enumerate(shape[: len(sizes)]):
        if type(sizes[dim]) is int and sizes[dim] == whole != size:
            sizes[dim] = size
            break
    return (*args[:first], sizes, *args[first + 1 :]) if listed else (*args[:first], *sizes)
