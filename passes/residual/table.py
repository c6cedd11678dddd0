# SPDX-License-Identifier: Apache-2.0
"""The one data structure of the compiler: the connectivity table, as pure data.

Rows are sub-blocks, columns are the terms of the residual sum, a cell says whether the sub-block reads the term, and a
row also says which terms a rewiring took away from it. Standard, parallel, ladder and FarSkip wiring differ in these
cells and in nothing else (arXiv 2511.11505, eq. 8).

The same object travels through the whole compiler: it is read off a graph (`residual`), with new cells it is what is
asked for (`rewire.request`), the graph is edited to match (`rewire`) and read again (`verify`); reports, manifests,
pictures and assertions show it.

Contract: immutable; holds names and numbers, no graph. Tables are equal if their wiring is, names included: what was
noted of a term on the way (`node`, `evidence`, `where`, `collectives`) is not compared. `from_json(to_json())` is the
same table without these notes. A table of n rows takes O(n) memory, since what a row reads is a few intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from farskip_compile.errors import Where
from farskip_compile.passes.residual.termset import TermSet


class TermKind(StrEnum):
    """Kind of a term. `shared` is a dense term of a sub-block that also has a routed one."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    MIXER = "mixer"
    DENSE = "dense"
    SHARED = "shared"
    ROUTED = "routed"

    @property
    def mixes_tokens(self) -> bool:
        """Attention, or another operator along the sequence."""
        return self in (TermKind.ATTENTION, TermKind.MIXER)


LETTERS = {
    TermKind.EMBEDDING: "e",
    TermKind.ATTENTION: "a",
    TermKind.MIXER: "a",
    TermKind.DENSE: "m",
    TermKind.SHARED: "s",
    TermKind.ROUTED: "r",
}
"""First letter of a term's name."""
NOTHING = TermSet()
ROW_NAMES = {TermKind.ATTENTION: "attention", TermKind.MIXER: "mixer", TermKind.DENSE: "mlp", TermKind.ROUTED: "moe"}
"""First word of a row's name; the kinds that a row can have."""


@dataclass(frozen=True)
class OperatorStep:
    """One operator of the graph."""

    operator: str
    where: Where


@dataclass(frozen=True)
class Term:
    """One summand of the residual stream (a column)."""

    index: int
    """Position in the residual sum."""
    name: str
    """`e`, or a letter for the kind and the layer: a attention or mixer, m dense, s shared, r routed."""
    kind: TermKind
    layer: int
    node: str = field(default="", compare=False)
    """Name of the FX node that holds it."""
    evidence: str = field(default="", compare=False)
    """What shows its kind."""
    where: Where = field(default=Where(), compare=False)
    collectives: tuple[str, ...] = field(default=(), compare=False)
    """Canonical names of the collectives that compute it, in graph order."""
    shared_inside: bool = field(default=False, compare=False)
    """A routed term that also holds its shared expert, summed before a normalization (so they stay together)."""
    inseparable: OperatorStep | None = field(default=None, compare=False)
    """The nonlinear step between that sum and the stream, if there is one: nothing can read one part of such a term."""
    carried: tuple[int, ...] = field(default=(), compare=False)
    """In a part of a model, of a term that came in apart from the stream: which of those terms it holds. It is of a
    layer before layer 0, or of layer 0 if a sub-block of that was compiled before."""


@dataclass(frozen=True)
class SubBlock:
    """One reader of the residual stream (a row): the terms that it adds and the terms that it reads."""

    name: str
    """`attention.2`, `mixer.2`, `mlp.2` or `moe.2`; a second one in the same layer is `mlp.2.1`."""
    kind: TermKind
    """ATTENTION, MIXER, DENSE or ROUTED."""
    layer: int
    terms: tuple[int, ...]
    """Indices of the terms that it adds."""
    reads: TermSet
    """What it reads."""
    left_out: TermSet = NOTHING
    """What it reads in the model as written, and no longer."""

    @property
    def reads_as_written(self) -> TermSet:
        """What it reads in the model as written."""
        return self.reads | self.left_out


@dataclass(frozen=True)
class Table:
    """Connectivity of one graph."""

    terms: tuple[Term, ...] = ()
    rows: tuple[SubBlock, ...] = ()

    @property
    def num_layers(self) -> int:
        """Layers, counted by token-mixing sub-blocks."""
        return max((row.layer for row in self.rows), default=-1) + 1

    @property
    def has_routed(self) -> bool:
        """Whether any sub-block is a MoE."""
        return any(row.kind is TermKind.ROUTED for row in self.rows)

    @property
    def everything(self) -> TermSet:
        """All terms: what the final hidden state holds under any connectivity."""
        return TermSet(((0, len(self.terms)),)) if self.terms else TermSet()

    def term(self, name: str) -> Term | None:
        """The term called `name`."""
        return self._terms_by_name.get(name)

    def row(self, name: str) -> SubBlock | None:
        """The sub-block called `name`."""
        return self._rows_by_name.get(name)

    def rows_of(self, layer: int) -> list[SubBlock]:
        """The sub-blocks of one layer."""
        return self._by_layer.get(layer, [])

    def terms_of(self, layer: int) -> list[Term]:
        """The terms of one layer, also of one before this part of a model; without the embedding."""
        return self._terms_by_layer.get(layer, [])

    def earlier(self, row: SubBlock) -> TermSet:
        """The terms that `row` would read under standard wiring: all that were added before its own first one."""
        return TermSet(((0, min(row.terms)),))

    def skipped(self, row: SubBlock) -> TermSet:
        """The terms of earlier sub-blocks that `row` does not read in the model as written."""
        return self._skipped[row.name]

    def names(self, terms: Iterable[int]) -> list[str]:
        """Names of `terms`, in stream order if these are a `TermSet`."""
        return [self.terms[index].name for index in terms]

    def text(self, terms: TermSet) -> str:
        """A set of terms in a few characters, from which `terms_in` reads it back: `e..a1, s1`."""
        return ", ".join(
            self.terms[low].name if high == low + 1 else f"{self.terms[low].name}..{self.terms[high - 1].name}"
            for low, high in terms.intervals
        )

    def main_term(self, row: SubBlock) -> Term:
        """The term that decided the kind of `row`, else its first one."""
        own = [self.terms[index] for index in row.terms]
        return next((term for term in own if term.kind is row.kind), own[0])

    def evidence(self, row: SubBlock) -> str:
        """What shows the kind of `row`."""
        term = self.main_term(row)
        return term.evidence + (" (its shared experts are inside the same norm)" if term.shared_inside else "")

    def where(self, row: SubBlock) -> str:
        """Where the first term of `row` is computed: the line of source, else the node."""
        where = self.terms[row.terms[0]].where
        return str(where.source or where.node or "")

    def collectives(self, row: SubBlock) -> tuple[str, ...]:
        """Canonical names of the collectives of `row`."""
        return tuple(name for index in row.terms for name in self.terms[index].collectives)

    def without(self, left_out: Mapping[str, TermSet]) -> Table:
        """The table in which some rows, by name, leave out terms that they read here."""
        pairs = ((row, left_out.get(row.name, NOTHING)) for row in self.rows)
        rows = (replace(row, reads=row.reads - gone, left_out=row.left_out | gone) for row, gone in pairs)
        return replace(self, rows=tuple(rows))

    def as_written(self) -> Table:
        """The table before any rewiring."""
        rows = (replace(row, reads=row.reads_as_written, left_out=NOTHING) for row in self.rows)
        return replace(self, rows=tuple(rows))

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`: names of the terms, and the rows with sets of terms as text."""
        return {
            "terms": [term.name for term in self.terms],
            "sub_blocks": [  # a list: transformers sorts the keys of objects when it saves a configuration
                {
                    "name": row.name,
                    "kind": str(row.kind),
                    "layer": row.layer,
                    "adds": self.names(row.terms),
                    "reads": self.text(row.reads),
                    "left_out": self.text(row.left_out),
                }
                for row in self.rows
            ],
        }

    @classmethod
    def from_json(cls, terms: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Table:
        """The table that `to_json` wrote as `terms` and `sub_blocks`, without the notes on its terms.

        Raises:
            BadCell: a value that no table has; of values of the right types, that is (the caller sees to types).
        """
        index = {name: position for position, name in enumerate(terms)}
        if len(index) != len(terms):
            raise BadCell("terms", "a list without repetitions", terms)
        found = tuple(_row(number, row, index) for number, row in enumerate(rows))
        if len({row.name for row in found}) != len(found):
            raise BadCell("sub_blocks", "a list without repetitions", [row.name for row in found])
        owner = {position: row for row in found for position in row.terms}
        return cls(tuple(_term(position, name, owner.get(position)) for name, position in index.items()), found)

    @cached_property
    def _terms_by_name(self) -> dict[str, Term]:
        return {term.name: term for term in self.terms}

    @cached_property
    def _rows_by_name(self) -> dict[str, SubBlock]:
        return {row.name: row for row in self.rows}

    @cached_property
    def _by_layer(self) -> dict[int, list[SubBlock]]:
        layers: dict[int, list[SubBlock]] = {}
        for row in self.rows:
            layers.setdefault(row.layer, []).append(row)
        return layers

    @cached_property
    def _terms_by_layer(self) -> dict[int, list[Term]]:
        layers: dict[int, list[Term]] = {}
        for term in self.terms:
            if term.kind is not TermKind.EMBEDDING:
                layers.setdefault(term.layer, []).append(term)
        return layers

    @cached_property
    def _skipped(self) -> dict[str, TermSet]:
        nobodys = self.everything - TermSet.of(index for row in self.rows for index in row.terms)
        seen, skipped = TermSet(), {}
        for row in self.rows:
            skipped[row.name] = (seen | (nobodys & self.earlier(row))) - row.reads_as_written
            seen = seen | TermSet.of(row.terms)
        return skipped


class BadCell(ValueError):
    """JSON that is not that of a table: the path of a value, what it should be, and what it is."""

    def __init__(self, key: str, wanted: str, found: object) -> None:
        super().__init__(f"{key!r} should be {wanted}, not {found!r}")
        self.key, self.wanted, self.found = key, wanted, found


def _row(number: int, row: Mapping[str, Any], index: Mapping[str, int]) -> SubBlock:
    def bad(key: str, wanted: str) -> BadCell:
        return BadCell(f"sub_blocks.{number}.{key}", wanted, row[key])

    def terms(key: str) -> TermSet:
        intervals = []
        for part in filter(None, row[key].split(", ")):
            low, _, high = part.partition("..")
            if low not in index or (high or low) not in index or index[low] > index[high or low]:
                raise bad(key, f"names from 'terms', such as 'e..a1, s1' (see {part!r})")
            intervals.append((index[low], index[high or low] + 1))
        return TermSet.from_intervals(intervals)

    if row["kind"] not in ROW_NAMES:
        raise bad("kind", f"one of {', '.join(ROW_NAMES)}")
    if row["layer"] < 0:
        raise bad("layer", "a whole number, 0 or more")
    if not row["adds"] or any(name not in index for name in row["adds"]):
        raise bad("adds", "a list of names from 'terms'")
    reads, left_out = terms("reads"), terms("left_out")
    if reads & left_out:
        raise bad("left_out", "something that it does not read")
    own = tuple(index[name] for name in row["adds"])
    return SubBlock(row["name"], TermKind(row["kind"]), row["layer"], own, reads, left_out)


def _term(index: int, name: str, row: SubBlock | None) -> Term:
    """A term by its name: the kind of a sub-block's term is that of its letter, for the letter of both mixers its
    sub-block's."""
    if row is None:
        return Term(index, name, TermKind.EMBEDDING, 0)
    feed_forward = {letter: kind for kind, letter in LETTERS.items() if not kind.mixes_tokens}
    return Term(index, name, feed_forward.get(name[:1], row.kind), row.layer)
