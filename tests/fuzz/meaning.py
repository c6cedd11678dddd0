# SPDX-License-Identifier: Apache-2.0
"""What a connectivity table says about a graph, tried out on the graph: the criterion for graphs nobody described.

In:    a normalised graph and the table that was read off it.
Out:   complaints about the table (`misread`), and what the graph must compute once some rows leave terms out
       (`predicted`).
Never: looks at how a pass decided; builds or edits a graph.

The table is taken at its word only for what its names mean: which node a term is, which nodes compute it, and which
nodes of an earlier sub-block a sub-block uses as a side channel. What it claims is then measured.

`misread`: pin every term to the value that it has, so that no change goes through another sub-block, and move one
term t by d and by 2 d. Then
  1. a sub-block computes something else than before if and only if its row reads t;
  2. a residual value changes if and only if its set holds t, and twice as far for 2 d: it is a sum, with coefficients
     that hang on no term.
`predicted`: for each term, run the graph as it is with the terms that its row leaves out pinned to zero and all others
pinned to what their own runs gave, and note what comes out. At the end run it with all terms pinned: its outputs.
Zeros change no bit of a sum, so the rewired graph must give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.residual import Reading
from farskip_compile.passes.residual.termset import TermSet
from tests.fuzz.machine import Run, run_nodes, same


@dataclass
class Meaning:
    """A normalised graph that nobody edits any more, and its table."""

    module: fx.GraphModule
    reading: Reading
    arguments: list[Any]
    images: list[list[fx.Node]] = field(init=False)
    """For each term but the embedding, the nodes that hold nothing but this term."""
    plain: Run = field(init=False)

    def __post_init__(self) -> None:
        self.table, self.stream, self.regions = self.reading.table, self.reading.stream, self.reading.regions
        self.images = [[] for _ in self.table.terms]
        for node, terms in self.stream.sums():
            if len(terms) == 1 and 0 not in terms:
                self.images[terms.newest].append(node)
        self.row_of = {index: row for row in self.table.rows for index in row.terms}
        self.escaping = self._escaping()
        self.plain = run_nodes(self.module, self.arguments)

    def _escaping(self) -> list[fx.Node]:
        """Inner nodes of sub-blocks that something else uses too: router logits that are returned, what is written."""
        owned = {node for region in self.regions for node in region.owned}
        inside = {*owned, *(node for node, _ in self.stream.sums())}
        return [node for node in owned if any(user not in inside or effects.mutated_args(user) for user in node.users)]

    def unjudged(self) -> str | None:
        """Why this graph can't be tried out by pinning, or None."""
        written = {effects.storage(base) for node in self.module.graph.nodes for base in effects.mutated_args(node)}
        side = [node for region in self.regions for node in region.side_channels]
        pinned = [*self.stream.cores, *side, *self.escaping, *(node for nodes in self.images for node in nodes)]
        if any(effects.storage(node) in written or effects.mutated_args(node) for node in pinned):
            return "memory of a pinned value is written in place"
        owned = [node for region in self.regions for node in region.owned if effects.mutated_args(node)]
        if any(arg in self.stream.values for node in owned for arg in node.all_input_nodes):
            return "a sub-block writes the stream to memory, which can't be pinned for it alone"
        if not all(ops.is_floating(core) for core in self.stream.cores):
            return "a term has no floating-point value"
        if not all(_is_finite(value) for value in self.plain.values.values()):
            return "a value is not finite"
        return None

    def misread(self, *, hidden: bool = False) -> list[str]:
        """Where the table and the behaviour of the graph differ.

        Args:
            hidden: something in the graph may hide a dependence from measuring (it multiplies by zero): then a read
                that can't be seen is no complaint.
        """
        complaints: list[str] = []
        for term in self.table.terms:
            core = self.stream.cores[term.index]
            value = self.plain.values[core]
            generator = torch.Generator().manual_seed(term.index)
            step = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
            pins = self._all_but(term.index)
            once, twice = (run_nodes(self.module, self.arguments, {**pins, core: value + k * step}) for k in (1, 2))
            leaf = self.regions[term.index].leaf  # a gate may be zero: an expert that no token chose
            unseen = hidden or (leaf is not core and same(once.values[leaf], self.plain.values[leaf]))
            complaints += self._wrong_rows(term.index, (once, twice), unseen)
            complaints += self._wrong_values(term.index, once, twice, unseen)
        return complaints

    def _all_but(self, index: int) -> dict[fx.Node, Any]:
        pinned = [node for other, nodes in enumerate(self.images) if other != index for node in nodes]
        pinned += [node for region in self.regions for node in region.side_channels]
        return {node: self.plain.values[node] for node in pinned}

    def _wrong_rows(self, index: int, runs: tuple[Run, ...], hidden: bool) -> list[str]:
        complaints = []
        side = {node for region in self.regions for node in region.side_channels}
        for other, region in enumerate(self.regions):
            if other == index or not region.owned:
                continue
            nodes = (self.stream.cores[other], *self.images[other])
            changes = any(not same(run.values[n], self.plain.values[n]) for run in runs for n in nodes)
            row, name, other_name = self.row_of[other], self.table.terms[index].name, self.table.terms[other].name
            if changes and index not in row.reads:
                complaints.append(f"{other_name} depends on {name}, but {row.name} does not read it")
            pinned_inside = not side.isdisjoint(self._behind(region.leaf))
            if not changes and index in row.reads and not hidden and not pinned_inside:
                complaints.append(f"{row.name} reads {name}, but {other_name} does not depend on it")
        return complaints

    def _behind(self, leaf: fx.Node) -> set[fx.Node]:
        """What a term is computed from, up to residual values."""
        found = {leaf}
        stack = [leaf]
        while stack:
            further = [arg for arg in self.stream.inputs(stack.pop()) if arg not in found]
            found.update(further)
            stack += [arg for arg in further if arg not in self.stream.values]
        return found

    def _wrong_values(self, index: int, once: Run, twice: Run, hidden: bool) -> list[str]:
        complaints = []
        for node, terms in self.stream.values.items():
            if node is self.stream.cores[index]:
                continue  # it was moved itself
            zero, one, two = (run.values[node] for run in (self.plain, once, twice))
            changes, name = not same(one, zero), self.table.terms[index].name
            if changes != (index in terms) and (changes or not hidden):
                complaints.append(
                    f"the residual value {node.name} {'depends' if changes else 'does not depend'} on {name}"
                )
            if changes and not _is_straight(zero.double(), one.double(), two.double(), _precision(self.module)):
                complaints.append(f"the residual value {node.name} is not linear in {name}")
        return complaints

    def predicted(self, left_out: Mapping[str, TermSet]) -> tuple[Any, ...]:
        """What a caller must see of the graph if each row leaves out the given terms."""
        known: dict[fx.Node, Any] = {}
        for index in sorted(range(1, len(self.regions)), key=lambda i: self.stream.order[self.stream.cores[i]]):
            row, region = self.row_of.get(index), self.regions[index]
            gone = left_out.get(row.name, TermSet()) if row is not None else TermSet()
            together = row.terms if row is not None else (index,)  # a norm that they share may hang on one, too
            beside = {node for other in together for node in self.regions[other].side_channels} - {*region.met}
            pins = {node: known[node] for node in beside if node in known}
            for other, nodes in enumerate(self.images):
                for node in nodes if other != index else ():
                    if other in gone:
                        pins[node] = torch.zeros_like(self.plain.values[node])
                    elif node in known:
                        pins[node] = known[node]
            for node, terms in self.stream.sums():
                if not terms - gone:  # a constant that is added to such a sum goes with it
                    pins[node] = torch.zeros_like(self.plain.values[node])
            run = run_nodes(self.module, self.arguments, pins)
            known.update({node: run.values[node] for node in (*region.owned, *self.images[index])})
        last = [*self.escaping, *(node for nodes in self.images for node in nodes)]
        return run_nodes(self.module, self.arguments, {node: known[node] for node in last}).function()


def _is_straight(zero: torch.Tensor, one: torch.Tensor, two: torch.Tensor, precision: float) -> bool:
    """Whether three values lie on a line, equally far apart, up to rounding."""
    if not all(value.isfinite().all() for value in (zero, one, two)):
        return True
    size = max(value.abs().max().item() for value in (zero, one, two))
    return (two - 2 * one + zero).abs().max().item() <= precision * size


def _is_finite(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or not value.is_floating_point() or bool(value.isfinite().all())


def _precision(module: fx.GraphModule) -> float:
    """Rounding to be allowed for, relative: by the coarsest number format in the graph."""
    formats = {value.dtype for node in module.graph.nodes if (value := ops.tensor(node)) is not None}
    if formats & {torch.bfloat16, torch.float16}:
        return 0.1
    return 1e-4 if torch.float32 in formats else 1e-9
