# SPDX-License-Identifier: Apache-2.0
"""Proof of exchanges in pieces by expert: the old graph and the new one send labelled rows among ranks in memory.

Contract: compares the graph before (a record) with the graph after; shares no code with the pass that cut it, and asks
it nothing. What was added may only move rows and add up sizes; that is done here, on as many ranks as the exchanges
have, with counts and rows that are all different, so each row must end up where it did. Linear in what has changed.

Algorithm:
1. Old nodes that are left make the same call. Where one of them is given something else than before, the new value must
   be what the old one was: a claim.
2. Nodes that were added split, join, place, exchange, wait or add up sizes, and nothing else. Each exchange that is
   gone is there in pieces: at least two of the same kind among the same ranks, and as many for each.
3. On each rank, counts are drawn, and tensors that are given to the exchanges get rows with labels. The old nodes that
   are gone and the new ones are run, all ranks in step. Every claim must hold on every rank, row by row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile._compat import same_dim
from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, effects, ops, user_calls
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.verify.claims import claims_of

MOVES = frozenset(
    ["split", "getitem", "cat", "sym_sum", "arange", "view", "size", "expand", "zeros_like", "index_copy"]
)
_SAME = ("unflatten", "view", "reshape", "flatten", "contiguous", "to", "cpu", "long", "int")
READS = frozenset(["item", "_local_scalar_dense", "getitem", "select", "stack", "sym_sum", "add", *_SAME])
"""What is run to get sizes from counts."""
ROUNDS = 2
MOST = 4
"""Fewer rows than that travel in a block."""
ValueByRank = list[Any]
"""A value on each rank."""


def verify_blocks(graph: fx.Graph, before: GraphSnapshot) -> None:
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
    for seed in range(ROUNDS if claims else 0):
        _Simulated(old, set(new), seed).check(claims)


# 2


def _check_kinds(gone: Sequence[fx.Node], added: Sequence[fx.Node]) -> None:
    for node in added:
        if not (ops.op_name(node) in MOVES or comms.is_all_to_all(node) or comms.is_wait(node)):
            raise _error(node, f"{ops.op_name(node) or node.op} neither moves rows nor adds up sizes")
    for node in gone:
        if not (
            comms.is_all_to_all(node) or comms.is_wait(node) or (node.op.startswith("call") and effects.is_pure(node))
        ):
            raise _error(node, "what it did is no longer in the graph")
    were, are = (Counter(map(_kind, filter(comms.is_all_to_all, nodes))) for nodes in (gone, added))
    for kind in were | are:
        if were[kind] == 0 or are[kind] < 2 * were[kind] or are[kind] % were[kind]:
            node = next(one for one in (*added, *gone) if comms.is_all_to_all(one) and _kind(one) == kind)
            raise _error(node, f"{are[kind]} exchanges are there in place of {were[kind]}")


def _kind(launch: fx.Node) -> tuple[str, str]:
    return str(launch.target), comms.process_group(launch)


# 3


class _Simulated:
    """All ranks, in step."""

    def __init__(self, old: Mapping[str, fx.Node], new: Collection[str], seed: int) -> None:
        self.old = old
        self.kept = set(new).intersection(old)
        self.numbers = {str(value): node for node in old.values() if isinstance(value := ops.fake(node), torch.SymInt)}
        self.draw = torch.Generator().manual_seed(seed)
        self.values: dict[fx.Node, ValueByRank] = {}
        self.by_name: dict[str, ValueByRank] = {}
        """Of nodes that are in both graphs, or only in the old one."""
        self.labels = 1  # zeros are no rows
        self.ranks = 0

    def check(self, claims: Mapping[str, fx.Node]) -> None:
        for name, node in claims.items():
            _check_form(node, self.old[name])
            self.ranks = _ranks(node, self.kept)
            wanted, found = self._old(self.old[name]), self._new(node)
            for one, other in zip(wanted, found, strict=True):
                if not (one.shape == other.shape and torch.equal(one, other)):
                    raise _error(node, f"it does not bring the rows of {name!r}")

    def _old(self, node: fx.Node) -> ValueByRank:
        if node.name not in self.by_name:
            self.by_name[node.name] = self._leaf(node) if self._is_leaf(node) else self._run(node, self._old)
        return self.by_name[node.name]

    def _new(self, node: fx.Node) -> ValueByRank:
        if node.name in self.old:
            return self._old(self.old[node.name])
        if node not in self.values:
            self.values[node] = self._run(node, self._new)
        return self.values[node]

    def _is_leaf(self, node: fx.Node) -> bool:
        """Whether it is taken for given: a value that both graphs have, but for sizes, which counts decide."""
        if node.name not in self.kept:
            return False
        counts = ops.op_name(node) in READS or comms.is_all_to_all(node) or comms.is_wait(node)
        return ops.is_floating(node) or not counts

    def _leaf(self, node: fx.Node) -> ValueByRank:
        value = ops.tensor(node)
        if value is None:
            raise _error(node, "it decides on rows, and it is not known how")
        if (places := self._places(node)) is not None:
            return places
        if not value.is_floating_point():
            return [torch.randint(0, MOST, tuple(value.shape), generator=self.draw) for _ in range(self.ranks)]
        counts = self._rows(node, value)
        made = []
        for count in counts:
            made.append(torch.arange(self.labels, self.labels + count).unsqueeze(1))
            self.labels += count
        return made

    def _places(self, node: fx.Node) -> ValueByRank | None:
        """If rows are put where it says: each somewhere else."""
        for user in node.users:
            if ops.op_name(user) == "index_copy" and user.name not in self.kept and user.args[2] is node:
                return [torch.randperm(count, generator=self.draw) for count in self._copied(user)]
        return None

    def _copied(self, copy: fx.Node) -> list[int]:
        """How many rows are put in their places."""
        return [len(one) for one in self._old(copy.args[3])]  # type: ignore[arg-type]

    @staticmethod
    def _length(args: Sequence[Any], node: fx.Node) -> int:
        """Of zeros, of a size or like a value."""
        return len(args[0]) if ops.op_name(node) == "zeros_like" else int(args[0][0])

    def _rows(self, node: fx.Node, value: torch.Tensor) -> list[int]:
        """How many rows a tensor has on each rank."""
        for user in node.users:
            if _sends(user, node):
                splits = [self._old(size) for size in user.args[2]]  # type: ignore[arg-type,union-attr]
                return [sum(per_rank) for per_rank in zip(*splits, strict=True)]
            if ops.op_name(user) == "index_copy" and user.name not in self.kept and user.args[0] is node:
                return self._copied(user)
        number = self.numbers.get(str(value.shape[0]))
        if number is None:
            raise _error(node, "it is not known how many rows it has")
        return self._old(number)

    def _run(self, node: fx.Node, value_of: Callable[[fx.Node], ValueByRank]) -> ValueByRank:
        given = node.args, node.kwargs
        args = [fx.map_arg(given, lambda arg, rank=rank: value_of(arg)[rank]) for rank in range(self.ranks)]  # type: ignore[misc]
        try:
            if comms.is_all_to_all(node):
                return _exchange([one[0] for one in args])
            if comms.is_wait(node):
                return [one[0][0] for one in args]
            if ops.is_zeros(node):  # like rows: one label each
                return [torch.zeros(self._length(one[0], node), 1, dtype=torch.int64) for one in args]
            if node.op == "call_method":
                return [getattr(one[0][0], str(node.target))(*one[0][1:], **one[1]) for one in args]
            return [node.target(*one[0], **one[1]) for one in args]  # type: ignore[operator]
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise _error(node, f"it can't be done with rows of other ranks: {error}") from error


def _check_form(node: fx.Node, old: fx.Node) -> None:
    """Rows of the same type and width; how many is found by running."""
    one, other = ops.tensor(node), ops.tensor(old)
    same = one is not None and other is not None and one.dtype == other.dtype and one.device == other.device
    if not same or one.dim() != other.dim() or not all(map(same_dim, one.shape[1:], other.shape[1:])):  # type: ignore[union-attr]
        raise _error(node, f"its rows are not like those of {old.name!r}")


def _exchange(args: Sequence[Sequence[Any]]) -> ValueByRank:
    """An all-to-all; for each rank the tensor, how many rows it gets from each rank, and how many it sends."""
    sent = [tensor.split(list(leaving)) for tensor, _, leaving, *_ in args]
    got: ValueByRank = []
    for rank, (_, arriving, *_) in enumerate(args):
        parts = [sent[source][rank] for source in range(len(args))]
        if [len(part) for part in parts] != list(arriving):
            raise ValueError(f"rank {rank} is sent {[len(part) for part in parts]} rows and expects {list(arriving)}")
        got.append(torch.cat(parts))
    return got


def _sends(user: fx.Node, node: fx.Node) -> bool:
    sized = comms.is_all_to_all(user) and all(isinstance(size, fx.Node) for size in user.args[2])  # type: ignore[union-attr]
    return sized and user.args[0] is node


def _ranks(node: fx.Node, kept: Collection[str]) -> int:
    """Of the exchange that a new value comes from."""
    for one in walk_back([node], lambda node: node.name in kept):
        if comms.is_all_to_all(one):
            return len(one.args[1])  # type: ignore[arg-type]
    raise _error(node, "it comes from no exchange")


def _error(node: fx.Node, reason: str) -> VerificationError:
    return VerificationError(
        f"exchanges in pieces, by expert: {node.name!r} is not what it should be: {reason}",
        way_out="nothing was compiled; please report this: it is a defect of farskip-compile. pieces=1 goes without it",
        where=user_calls.where(node),
    )
