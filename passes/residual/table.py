"""The one data structure of the compiler: the connectivity table.

Rows are sub-blocks, columns are the terms of the residual sum, a cell says whether the sub-block reads the term.
Standard, parallel, ladder and FarSkip wiring differ in these cells and in nothing else (arXiv 2511.11505, eq. 8).
The table is read from a graph (`residual`), another one is requested (`rewire.request`), the graph is edited to match
(`rewire`), and the table is read again and compared (`farskip_compile.verify.rewiring`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from farskip_compile.errors import Where
from farskip_compile.passes.residual.kinds import Finding, Kind
from farskip_compile.passes.residual.stack import Stack
from farskip_compile.passes.residual.termset import TermSet


@dataclass(frozen=True)
class Term:
    """One summand of the residual stream (a column)."""

    index: int
    """Position in the residual sum."""
    name: str
    """`e`, or a letter for the kind and the layer: a attention or mixer, m dense, s shared, r routed."""
    kind: Kind
    layer: int
    node: str
    """Name of the FX node that holds it."""
    evidence: str
    where: Where
    collectives: tuple[str, ...] = ()
    """Canonical names of the collectives that compute it, in graph order."""
    shared_inside: bool = False
    """A routed term that holds its shared expert too, before a normalisation (so they stay together)."""


@dataclass(frozen=True)
class SubBlock:
    """One reader of the residual stream (a row): the terms that it computes and the terms that it reads."""

    name: str
    """`attention.2`, `mixer.2`, `mlp.2` or `moe.2`; a second one in the same layer is `mlp.2.1`."""
    kind: Kind
    """ATTENTION, MIXER, DENSE or ROUTED."""
    layer: int
    terms: tuple[int, ...]
    reads: TermSet


@dataclass(frozen=True)
class ResidualTable:
    """Connectivity of one graph. Equality of tables is equality of wiring, names included."""

    terms: tuple[Term, ...]
    rows: tuple[SubBlock, ...]
    final: TermSet
    """What the final hidden state holds."""
    handles: GraphHandles | None = field(default=None, compare=False, repr=False)

    @property
    def num_layers(self) -> int:
        """Layers, counted by token-mixing sub-blocks."""
        return max((row.layer for row in self.rows), default=-1) + 1

    @property
    def has_routed(self) -> bool:
        """Whether any sub-block is a MoE."""
        return any(row.kind is Kind.ROUTED for row in self.rows)

    def term(self, name: str) -> Term | None:
        """The term called `name`."""
        return self._terms_by_name.get(name)

    def row(self, name: str) -> SubBlock | None:
        """The sub-block called `name`."""
        return self._rows_by_name.get(name)

    @cached_property
    def _terms_by_name(self) -> dict[str, Term]:
        return {term.name: term for term in self.terms}

    @cached_property
    def _rows_by_name(self) -> dict[str, SubBlock]:
        return {row.name: row for row in self.rows}

    def names(self, terms: TermSet) -> list[str]:
        """Names of `terms`, in stream order."""
        return [self.terms[index].name for index in terms]

    def earlier(self, row: SubBlock) -> TermSet:
        """The terms that `row` would read under standard wiring: all that were added before its own first one."""
        return TermSet(((0, min(row.terms)),))

    def rows_of(self, layer: int) -> list[SubBlock]:
        """The sub-blocks of one layer."""
        return self._by_layer.get(layer, [])

    @cached_property
    def _by_layer(self) -> dict[int, list[SubBlock]]:
        layers: dict[int, list[SubBlock]] = {}
        for row in self.rows:
            layers.setdefault(row.layer, []).append(row)
        return layers


@dataclass(frozen=True)
class GraphHandles(Stack):
    """The graph side of a table: valid until the graph is edited."""

    findings: list[Finding]
    """By term index."""
