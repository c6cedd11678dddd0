# SPDX-License-Identifier: Apache-2.0
"""The only pass that changes the function of the model: edit the graph to match a requested table.

In:    a normalised graph as a `Reading`, and a `RewireRequest`.
Out:   the same graph, in which each row of the request reads its residual values without the terms left out.
Never: touches a residual sum of the model (every term still reaches the final hidden state), adds a read, moves a
       node, or changes what a row outside the request reads.

Algorithm:
1. Where a collective hides a sum of terms of which only some are left out, split it (`split_collectives`).
2. For each row and each residual value v that it reads: build v without the terms (`substitute`).
3. Point the row's own nodes at the new value. Nodes that another row reads too, such as the one norm of a parallel
   block, are copied for the row that changes. Whatever else uses such a node (the caller, if it is returned; a
   later sub-block, outside the stream) keeps seeing what the row that owns it sees.
   An all-gather after a norm (sequence parallelism) is copied too: one more collective, on every rank alike.
4. Erase what has become dead, collectives included. (The driver lints the graph.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import comms, effects, ops, user_calls
from farskip_compile.passes.graph.dead import erase_dead, used_nodes
from farskip_compile.passes.graph.walk import fresh_like, walk_back
from farskip_compile.passes.residual import Reading
from farskip_compile.passes.residual.table import SubBlock
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.passes.rewire.request import RewireRequest
from farskip_compile.passes.rewire.split_collectives import split_sums
from farskip_compile.passes.rewire.substitute import Substitution


def rewire(module: fx.GraphModule, reading: Reading, request: RewireRequest) -> int:
    """Edit `module` in place so that its table becomes `request.wanted(reading.table)`.

    Returns:
        How many collectives had to be split.

    Raises:
        UnsupportedPatternError: a node that would have to be copied draws random numbers or writes memory.
    """
    if not request.left_out and not request.leaving:
        return 0
    used_before = used_nodes(module.graph)
    # 1. split the collectives that hide a sum
    whole, split = split_sums(module, reading, request)
    left_out = _renumbered(request.left_out, reading, whole) if split else request.left_out
    # 2. and 3. one row after another
    edit = _Edit.of(module.graph, whole, left_out)
    for row in whole.table.rows:
        if left_out.get(row.name):
            edit.rewire(row)
    # 4. clean up
    erase_dead(module.graph, used_before)
    return split


def _renumbered(left_out: Mapping[str, TermSet], before: Reading, after: Reading) -> dict[str, TermSet]:
    """The same terms by their indices in the table read after splitting: C(s + r) becomes C(r) + C(s)."""
    index_of = {core: index for index, core in enumerate(after.stream.cores)}
    cores = before.stream.cores
    return {name: TermSet.of(index_of[cores[index]] for index in terms) for name, terms in left_out.items()}


@dataclass
class _Edit:
    """Steps 2 and 3 on one graph."""

    graph: fx.Graph
    reading: Reading
    left_out: Mapping[str, TermSet]
    owner: dict[fx.Node, str]
    """The row that a node is computed for."""
    visitors: Mapping[fx.Node, Mapping[str, None]]
    """Other rows that use a node to reach what they read."""
    substitution: Substitution

    @classmethod
    def of(cls, graph: fx.Graph, reading: Reading, left_out: Mapping[str, TermSet]) -> _Edit:
        rows, regions = reading.table.rows, reading.regions
        owner = {node: row.name for row in rows for index in row.terms for node in regions[index].owned}
        visitors = _visitors(reading, owner)
        return cls(graph, reading, left_out, owner, visitors, Substitution(reading.stream, graph))

    def rewire(self, row: SubBlock) -> None:
        """Let `row` read the stream without what it leaves out."""
        replacement = self._new_values(row)
        own = [node for index in row.terms for node in self.reading.regions[index].owned]
        visited = [node for node, rows in self.visitors.items() if row.name in rows]
        for node in sorted({*own, *visited}, key=lambda n: self.reading.stream.order[n]):
            if not replacement.keys().isdisjoint(node.all_input_nodes):
                self._redirect(row, node, replacement)

    def _new_values(self, row: SubBlock) -> dict[fx.Node, fx.Node]:
        """Step 2: each residual value that `row` reads and that changes -> what it reads instead."""
        dropped, replacement = self.left_out[row.name], {}
        for index in row.terms:
            region = self.reading.regions[index]
            if uses := region.direct & dropped:
                term = self.reading.leaf(next(iter(uses)))
                raise UnsupportedPatternError(
                    f"{row.name} uses what another sub-block adds ({user_calls.name_written(term)!r}) as it is, not "
                    "through the stream",
                    way_out="it can't be left out without another model; leave this sub-block as it is",
                    where=user_calls.where(term, row.layer),
                )
            for value in region.read_values:
                new = self.substitution.without(value, dropped)
                if new is None:
                    raise UnsupportedPatternError(
                        f"{row.name} would read nothing through {user_calls.name_written(value)!r}",
                        where=user_calls.where(value, row.layer),
                    )
                if new is not value:
                    replacement[value] = new
        return replacement

    def _redirect(self, row: SubBlock, node: fx.Node, replacement: dict[fx.Node, fx.Node]) -> None:
        """Step 3 for one node: in place if all its readers leave out the same, else on a copy, which `replacement`
        then holds for the nodes after it."""
        owner, visiting = self.owner[node], self.visitors.get(node, ())
        if all(self.left_out.get(reader) == self.left_out[row.name] for reader in (owner, *visiting)):
            for arg in node.all_input_nodes:
                if arg in replacement:
                    node.replace_input_with(arg, replacement[arg])
            return
        copy = replacement[node] = _copy(self.graph, node, replacement, row)
        readers = {row.name, *visiting}
        for user in list(node.users) if owner == row.name else ():
            if self.owner.get(user) not in readers:
                user.replace_input_with(node, copy)
        self.owner[copy] = row.name


def _visitors(reading: Reading, owner: Mapping[fx.Node, str]) -> dict[fx.Node, dict[str, None]]:
    """For each node that a row other than its owner uses to reach what it reads: those rows."""
    visitors: dict[fx.Node, dict[str, None]] = {}
    for row in reading.table.rows:
        met = [node for index in row.terms for node in reading.regions[index].met]

        def ends(node: fx.Node, name: str = row.name) -> bool:
            return reading.stream.is_residual(node) or owner.get(node, name) == name

        for node in walk_back(met, ends, reading.stream.inputs):
            visitors.setdefault(node, {})[row.name] = None
    return visitors


def _is_functional_collective(node: fx.Node) -> bool:
    """A launch that writes none of its inputs, or a wait: every rank makes the same edit, so all of them make two."""
    return comms.is_wait(node) or (comms.is_collective(node) and not ops.op_name(node).endswith("_"))


def _copy(graph: fx.Graph, node: fx.Node, replacement: Mapping[fx.Node, fx.Node], row: SubBlock) -> fx.Node:
    if not effects.is_pure(node) and not _is_functional_collective(node):
        raise UnsupportedPatternError(
            f"{row.name} shares {user_calls.shown(node)!r} with a sub-block that keeps what it reads, and it can't be "
            "computed twice",
            way_out="give each sub-block its own copy of this step in the model",
            where=user_calls.where(node, row.layer),
        )
    with graph.inserting_after(node):
        copy = graph.node_copy(node, lambda arg: replacement.get(arg, arg))
    value = ops.tensor(node)
    if value is not None:
        copy.meta["example_value"] = fresh_like(value)
    return copy
