# SPDX-License-Identifier: Apache-2.0
"""The table of a whole model, put together from the compiled parts that have run in one call.

Contract: parts are recorded for each thread between `start_recording` and `stop_recording`, around one call of a model;
parts that are recomputed for a backward pass are not. `assemble` is pure.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from farskip_compile._compat.tensors import in_backward
from farskip_compile.passes.residual.table import LETTERS, ROW_NAMES, SubBlock, Table, Term, TermKind
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.passes.rewire.request import Connectivity


@dataclass(frozen=True)
class CompiledPart:
    """A compiled part of a model that has run."""

    table: Table
    apart: tuple[int, ...]
    """Indices of the terms that left the part apart from the stream."""
    connectivity: Connectivity
    """The connectivity that the part was compiled with."""


_local = threading.local()


def start_recording() -> None:
    """Record the parts that run in this thread from here on."""
    _local.parts = []


def record(part: CompiledPart) -> None:
    """Record that `part` has run, if this thread records."""
    parts: list[CompiledPart] | None = getattr(_local, "parts", None)
    if parts is not None and not in_backward():
        parts.append(part)


def stop_recording() -> list[CompiledPart]:
    """Return the parts that have run since `start_recording`, in their order."""
    parts: list[CompiledPart] | None = getattr(_local, "parts", None)
    _local.parts = None
    return parts or []


def assemble(parts: Sequence[CompiledPart]) -> Table:
    """Return the table of a model whose parts have run in this order, each on the stream of the one before."""
    terms: list[Term] = []
    rows: list[SubBlock] = []
    uses: Counter[str] = Counter()
    """The number of uses of each name so far."""
    apart: tuple[int, ...] = ()
    layers = 0
    for part in parts:
        numbers = _TermNumbers.of(part.table, len(terms), apart)
        continues = bool(part.table.rows) and layers > 0 and not part.table.rows[0].kind.mixes_tokens
        offset = layers - 1 if continues else layers
        for local, index in numbers.new.items():
            term = part.table.terms[local]
            stem = LETTERS[term.kind] + ("" if term.kind is TermKind.EMBEDDING else str(term.layer + offset))
            terms.append(replace(term, index=index, name=_unused_name(stem, uses), layer=term.layer + offset))
        for row in part.table.rows:
            rows.append(
                SubBlock(
                    _unused_name(f"{ROW_NAMES[row.kind]}.{row.layer + offset}", uses),
                    row.kind,
                    row.layer + offset,
                    tuple(numbers.new[index] for index in row.terms),
                    numbers.in_model(row.reads),
                    numbers.in_model(row.left_out),
                )
            )
        layers = max([layers, *(row.layer + offset + 1 for row in part.table.rows)])
        apart = tuple(chain.from_iterable(numbers.by_local[index] for index in part.apart))
    return Table(tuple(terms), tuple(rows))


def _unused_name(stem: str, uses: Counter[str]) -> str:
    """Return `stem`, with a number if the name is in use, and count the use."""
    name = f"{stem}.{uses[stem]}" if uses[stem] else stem
    uses[stem] += 1
    return name


@dataclass(frozen=True)
class _TermNumbers:
    """The indices in the model of the terms of one part."""

    by_local: Sequence[TermSet]
    """The terms of the model that each term of the part stands for."""
    new: dict[int, int]
    """The index in the model of each term that the part adds, by its index in the part."""

    @classmethod
    def of(cls, table: Table, known: int, apart: Sequence[int]) -> _TermNumbers:
        """Return the numbers of the terms of `table` after `known` earlier terms, of which `apart` were left apart."""
        settled = TermSet(((0, known),)) if known else TermSet()
        if any(term.carried for term in table.terms):
            settled = settled - TermSet.of(apart)
        by_local: list[TermSet] = []
        new: dict[int, int] = {}
        for term in table.terms:
            if term.carried:
                by_local.append(TermSet.of(apart[place] for place in term.carried))
            elif term.kind is TermKind.EMBEDDING and known:
                by_local.append(settled)
            else:
                new[term.index] = known + len(new)
                by_local.append(TermSet.of([new[term.index]]))
        return cls(by_local, new)

    def in_model(self, terms: TermSet) -> TermSet:
        """Return the terms of the model that a set of the part's terms stands for."""
        found = TermSet()
        for index in terms:
            found = found | self.by_local[index]
        return found
