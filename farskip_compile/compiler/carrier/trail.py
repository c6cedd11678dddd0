# SPDX-License-Identifier: Apache-2.0
"""Which parts of a model have run, in their order: from it the table of the whole model is put together.

Contract: kept for each thread between `begin` and `end`, around one call of a model; what is recomputed for a backward
pass does not count. `assemble` is pure.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from farskip_compile._compat.tensors import in_backward
from farskip_compile.passes.residual.table import LETTERS, ROW_NAMES, SubBlock, Table, Term, TermKind
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.passes.rewire.request import Connectivity


@dataclass(frozen=True)
class Passed:
    """A compiled part of a model that has run."""

    table: Table
    apart: tuple[int, ...]
    """Indices of the terms that left it apart."""
    connectivity: Connectivity
    """That it was compiled with."""


_local = threading.local()


def begin() -> None:
    """From here on, what runs in this thread is noted."""
    _local.passed = []


def note(passed: Passed) -> None:
    """A part has run."""
    found: list[Passed] | None = getattr(_local, "passed", None)
    if found is not None and not in_backward():
        found.append(passed)


def end() -> list[Passed]:
    """What has run since `begin`."""
    found: list[Passed] | None = getattr(_local, "passed", None)
    _local.passed = None
    return found or []


def assemble(parts: Sequence[Passed]) -> Table:
    """The table of a model whose parts have run in this order, each on the stream that the one before has returned."""
    terms: list[Term] = []
    rows: list[SubBlock] = []
    taken: Counter[str] = Counter()
    apart: tuple[int, ...] = ()
    layers = 0
    for part in parts:
        whole = _Numbers.of(part.table, len(terms), apart)
        own = [row.layer for row in part.table.rows]
        continues = bool(part.table.rows) and layers > 0 and not part.table.rows[0].kind.mixes_tokens
        offset = layers - 1 if continues else layers
        for local, index in whole.new.items():
            term = part.table.terms[local]
            stem = LETTERS[term.kind] + ("" if term.kind is TermKind.EMBEDDING else str(term.layer + offset))
            terms.append(replace(term, index=index, name=_free(stem, taken), layer=term.layer + offset))
        for row in part.table.rows:
            rows.append(
                SubBlock(
                    _free(f"{ROW_NAMES[row.kind]}.{row.layer + offset}", taken),
                    row.kind,
                    row.layer + offset,
                    tuple(whole.new[index] for index in row.terms),
                    whole.of_set(row.reads),
                    whole.of_set(row.left_out),
                )
            )
        layers = max([layers, *(layer + offset + 1 for layer in own)])
        apart = tuple(place for index in part.apart for place in whole.held[index])
    return Table(tuple(terms), tuple(rows))


def _free(stem: str, taken: Counter[str]) -> str:
    name = f"{stem}.{taken[stem]}" if taken[stem] else stem
    taken[stem] += 1
    return name


@dataclass(frozen=True)
class _Numbers:
    """From the terms of a part to those of the whole."""

    held: Sequence[TermSet]
    """For each term of the part, what it is in the whole."""
    new: dict[int, int]
    """Those that the part adds."""

    @classmethod
    def of(cls, table: Table, known: int, apart: Sequence[int]) -> _Numbers:
        """`known` terms came before, of which some were left apart."""
        settled = TermSet(((0, known),)) if known else TermSet()
        if any(term.carried for term in table.terms):
            settled = settled - TermSet.of(apart)
        held: list[TermSet] = []
        new: dict[int, int] = {}
        for term in table.terms:
            if term.carried:
                held.append(TermSet.of(apart[place] for place in term.carried))
            elif term.kind is TermKind.EMBEDDING and known:
                held.append(settled)
            else:
                new[term.index] = known + len(new)
                held.append(TermSet.of([new[term.index]]))
        return cls(held, new)

    def of_set(self, terms: TermSet) -> TermSet:
        """A set of the part's terms, in numbers of the whole."""
        found = TermSet()
        for index in terms:
            found = found | self.held[index]
        return found
