# SPDX-License-Identifier: Apache-2.0
"""Proof of exchanges in pieces by expert, on simulated ranks: each labelled row must end up where it did.

Contract: compares the graph before (a record) with the graph after; shares no code with the pass that cut it, and asks
it nothing. Only moves of rows and sums of sizes may be new. Counts are taken for given: how experts were chosen may be
written in operators that nothing is known of. Linear in what has changed.

Algorithm:
1. Old nodes that are left make the same call; where one is given a new value, that is a claim (`verify.claims`).
2. Each exchange that is gone is there in pieces: at least two of the same kind, and as many for each.
3. On each rank, counts are drawn, and tensors that are given to the exchanges get rows with labels. What is gone and
   what is new is run on all ranks (`tokens.ranks`), and every claim must hold on every rank, row by row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile._compat import same_dim
from farskip_compile._compat.fake import size_with
from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, effects, ops, user_calls
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.verify.claims import claims_of
from farskip_compile.verify.tokens.labels import fresh, label_of
from farskip_compile.verify.tokens.moves import zeros
from farskip_compile.verify.tokens.ranks import Nodes, SimulatedRanks, same

MOVES = frozenset(
    ["split", "getitem", "cat", "sym_sum", "arange", "view", "size", "expand", "zeros_like", "index_copy"]
)
READS = frozenset(
    ["item", "_local_scalar_dense", "getitem", "select", "stack", "sym_sum", "add", "unflatten", "view", "reshape"]
).union(["flatten", "contiguous", "to", "cpu", "long", "int"])
"""Operators that are run to get sizes from counts."""
ROUNDS = 2


def verify_by_expert(graph: fx.Graph, before: GraphSnapshot) -> None:
    """Check that `graph` computes what it did when `before` was recorded.

    Raises:
        VerificationError: naming the first node that is not what it should be.
    """
    old = {node.name: node for node in before.restore().nodes}
    new = {node.name: node for node in graph.nodes}
    claims = claims_of(new, old, _error)
    gone = [node for name, node in old.items() if name not in new]
    added = [node for name, node in new.items() if name not in old]
    _check_kinds(gone, added)
    given = set(old).intersection(new)
    graphs = Nodes(old.values()), Nodes(new.values())
    runs: dict[tuple[int, int, str], tuple[SimulatedRanks, SimulatedRanks]] = {}
    for name, node in claims.items():
        _check_form(node, old[name])
        count, group = _ranks(node, given)
        for seed in range(ROUNDS):
            if (seed, count, group) not in runs:
                first = _RanksWithCounts(graphs[0], given, count, seed, _error)
                runs[seed, count, group] = first, _RanksWithCounts(graphs[1], given, count, seed, _error, first)
            one, other = runs[seed, count, group]
            if not all(map(same, one.value_of(old[name]), other.value_of(node))):
                raise _error(node, f"it does not bring the rows of {name!r}")


def _check_kinds(gone: Sequence[fx.Node], added: Sequence[fx.Node]) -> None:
    for node in added:
        if not (ops.op_name(node) in MOVES or comms.is_all_to_all(node) or comms.is_wait(node)):
            raise _error(node, f"{ops.op_name(node) or node.op} neither moves rows nor adds up sizes")
    for node in gone:
        is_exchange = comms.is_all_to_all(node) or comms.is_wait(node)
        if not is_exchange and not (node.op.startswith("call") and effects.is_pure(node)):
            raise _error(node, "what it did is no longer in the graph")
    were, are = (Counter(map(_kind, filter(comms.is_all_to_all, nodes))) for nodes in (gone, added))
    for kind in were | are:
        if were[kind] == 0 or are[kind] < 2 * were[kind] or are[kind] % were[kind]:
            node = next(one for one in (*added, *gone) if comms.is_all_to_all(one) and _kind(one) == kind)
            raise _error(node, f"{are[kind]} exchanges are there in place of {were[kind]}")


def _kind(launch: fx.Node) -> tuple[str, str]:
    return str(launch.target), comms.process_group(launch)


class _RanksWithCounts(SimulatedRanks):
    """One graph on all ranks, with counts for given. Values in both graphs, but for sizes, are given."""

    def is_given(self, node: fx.Node) -> bool:
        if node.name not in self.given:
            return False
        reads = ops.op_name(node) in READS or comms.is_all_to_all(node) or comms.is_wait(node)
        return ops.is_floating(node) or not reads

    def _leaf(self, node: fx.Node) -> list[Any]:
        """Draw what is given by how the old graph uses the value."""
        if self.first is not None:
            node = next(one for one in self.first.graph.place if one.name == node.name)
            return self.first._leaf(node)
        return super()._leaf(node)

    def _fresh(self, node: fx.Node, rank: int) -> Any:
        value = ops.tensor(node)
        if value is None:
            raise self.error(node, "it decides on rows, and it is not known how")
        for user in node.users:
            if self._puts_rows(user) and user.args[2] is node:
                draw = torch.Generator().manual_seed(label_of(node.name, rank, self.seed) & 0x7FFFFFFF)
                return torch.randperm(self._rows_of(user.args[3], rank), generator=draw)
        if not value.is_floating_point():
            if -1 in self._shape(value, rank, node):
                raise self.error(node, f"it is not known how many rows it has: {tuple(value.shape)}")
            return super()._fresh(node, rank)
        shape = self._rows(node, value, rank), *self._widths(value, rank)
        return fresh(label_of(node.name, rank, self.seed), shape, max(len(shape) - 1, 1))

    def _rows(self, node: fx.Node, value: torch.Tensor, rank: int) -> int:
        """Return how many rows a tensor has: as many as are sent or put in place of its own."""
        for user in node.users:
            if comms.is_all_to_all(user) and user.args[0] is node:
                sizes: Any = user.args[2]
                if all(isinstance(size, fx.Node) for size in sizes):
                    return sum(self.value_of(size)[rank] for size in sizes)
            if self._puts_rows(user) and user.args[0] is node:
                return self._rows_of(user.args[3], rank)
        count: int | torch.SymInt = value.shape[0]
        named = self.graph.place if isinstance(count, torch.SymInt) else ()
        symbols = {one: ops.fake(one) for one in named}
        number = next(
            (one for one, size in symbols.items() if isinstance(size, torch.SymInt) and str(size) == str(count)), None
        )
        if number is None:
            raise self.error(node, "it is not known how many rows it has")
        return int(self.value_of(number)[rank])

    def _puts_rows(self, user: fx.Node) -> bool:
        return ops.op_name(user) == "index_copy" and user.name not in self.given

    def _rows_of(self, value: Any, rank: int) -> int:
        return int(self.value_of(value)[rank].shape[0])

    def _on_rank(self, node: fx.Node, rank: int) -> Any:
        value = ops.tensor(node)
        if not ops.is_zeros(node) or value is None:
            return super()._on_rank(node, rank)
        length: Any = self.arguments_on_rank(node, rank)[0][0]
        if ops.op_name(node) == "zeros_like":
            length = length.shape[0]
        elif isinstance(length, tuple | list):
            length = length[0]
        return zeros((int(length), *self._widths(value, rank)))

    def _shape(self, value: torch.Tensor, rank: int, node: fx.Node) -> tuple[int, ...]:
        """Return the sizes of `value`; -1 rows where their number is a symbol, which no labels fit."""
        if value.dim() == 0:
            return ()
        rows: int | torch.SymInt = value.shape[0]
        known = rows if isinstance(rows, int) else size_with(rows, self.sizes[rank])
        return -1 if known is None else known, *self._widths(value, rank)

    def _widths(self, value: torch.Tensor, rank: int) -> list[int]:
        """Return the sizes of all dimensions but the rows; 1 for a symbol, since the width of rows decides nothing."""
        sizes: list[int | torch.SymInt] = list(value.shape[1:])
        return [size if isinstance(size, int) else size_with(size, self.sizes[rank]) or 1 for size in sizes]


def _check_form(node: fx.Node, old: fx.Node) -> None:
    """Check that rows have the type and the width of the old ones; how many there are is found by running."""
    one, other = ops.tensor(node), ops.tensor(old)
    is_same = one is not None and other is not None and one.dtype == other.dtype and one.device == other.device
    if not is_same or one.dim() != other.dim() or not all(map(same_dim, one.shape[1:], other.shape[1:])):  # type: ignore[union-attr]
        raise _error(node, f"its rows are not like those of {old.name!r}")


def _ranks(node: fx.Node, given: Collection[str]) -> tuple[int, str]:
    """Return the number of ranks of the exchange that a new value comes from, and their group."""
    for one in walk_back([node], lambda node: node.name in given):
        if comms.is_all_to_all(one):
            return len(one.args[1]), comms.process_group(one)  # type: ignore[arg-type]
    raise _error(node, "it comes from no exchange")


def _error(node: fx.Node, reason: str) -> VerificationError:
    return VerificationError(
        f"exchanges in pieces, by expert: {node.name!r} is not what it should be: {reason}",
        way_out="nothing was compiled; please report this: it is a defect of farskip-compile. pieces=1 goes without it",
        where=user_calls.where(node),
    )
