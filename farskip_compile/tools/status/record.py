# SPDX-License-Identifier: Apache-2.0
"""What is known of one model, as a record that people and programs can read.

Contract: plain data, its text in 80 columns and its JSON. Nothing is looked up here.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from farskip_compile.records.compile import CompileReport
from farskip_compile.records.expected import PhaseOverlap
from farskip_compile.records.rows import SubBlockRows, in_words
from farskip_compile.text_utils import amount

WIDTH = 80
NAMED = 3
"""Parameters that are named; others are counted."""


class Answer(StrEnum):
    """Whether a model runs rewired."""

    REWIRED = "REWIRED"
    NOT_REWIRED = "NOT REWIRED"
    UNKNOWN = "UNKNOWN"


class How(StrEnum):
    """How a model is compiled."""

    NOT = "not compiled"
    IN_PLACE = "compiled in place"
    WRAPPED = "compiled in a wrapper: only calls of the wrapper run compiled"
    INSIDE = "a module in it is compiled in place"
    LAYERS = "its layers are compiled one by one"
    AROUND = "compiled as a part of what is around it: a call of the module itself runs as it is written"


@dataclass(frozen=True)
class Status:
    """What is known of one model in this process, at this moment."""

    model: str
    """Name of its class."""
    how: How
    """How it is compiled."""
    answer: Answer
    """Whether it runs rewired."""
    why: str
    """What the answer rests on, if it is not a plain yes."""
    reports: tuple[CompileReport, ...]
    """Of the graphs with a residual stack that the answer is about, the one that ran last at the end; or the one that
    was put together of its layers."""
    overlap: tuple[PhaseOverlap, ...]
    """Expected, for each phase that has run and is scheduled."""
    no_overlap: str
    """Why `overlap` is empty, if it is."""
    manifest: str
    """Whether it was compiled by a manifest, or carries one."""
    graphs: tuple[tuple[str, int], ...]
    """What became of its graphs, of losses and parts of a model as well, and of how many each."""
    graph_breaks: tuple[str, ...]
    """Where Dynamo ended one of its graphs, and why."""
    outside: tuple[str, ...]
    """Names of parameters that no graph has run with: of parts that are not compiled, or by another backend, or that
    were added or replaced since."""
    parameters: int
    """How many it has."""
    unseen: tuple[str, ...] = ()
    """Ways to run the model as it is written that leave no trace; see docs/training.md."""

    @property
    def rewired(self) -> bool:
        """Whether it is known to run rewired, as asked."""
        return self.answer is Answer.REWIRED

    @property
    def rows(self) -> SubBlockRows | None:
        """Sub-blocks that were to change and those that did; None: no graph with a residual stack has run."""
        return SubBlockRows.of(self.reports[-1]) if self.reports else None

    @property
    def left_out(self) -> dict[str, tuple[str, ...]]:
        """Names of the terms that each sub-block leaves out, by its name; those that changed only."""
        return self.reports[-1].left_out if self.reports else {}

    def __str__(self) -> str:
        """For people, in 80 columns."""
        lines = textwrap.wrap(f"{self.answer}: {self.model}, {self.how}", WIDTH, subsequent_indent="  ")
        for label, text in self._facts():
            lines += textwrap.wrap(
                text,
                WIDTH,
                initial_indent=f"  {label:<11}",
                subsequent_indent=" " * 13,
                break_on_hyphens=False,
            )
        return "\n".join(lines)

    def _facts(self) -> list[tuple[str, str]]:
        facts = [("why", self.why)] if self.why else []
        if self.reports:
            report = self.reports[-1]
            wiring = f"{report.wiring_before} -> {report.wiring_after}" if report.left_out else report.wiring_after
            facts.append(("rows", f"{self.rows} in {amount(report.table.num_layers, 'layer')}: {wiring}"))
            facts += [("", f"{phrase}") for phrase in in_words(report.table)]
            facts.append(
                (
                    "overlap",
                    f"expected: {', '.join(map(str, self.overlap))}"
                    if self.overlap
                    else f"none expected ({self.no_overlap})",
                )
            )
            facts.append(("manifest", self.manifest))
        if self.graphs:
            facts.append(("graphs", ", ".join(f"{number} {outcome}" for outcome, number in self.graphs)))
        facts += [("break", text) for text in self.graph_breaks]
        if self.outside and self.graphs:
            facts.append(("outside", self._outside()))
        if self.unseen and self.rewired:
            facts.append(("unseen", f"calls past what is compiled, in {len(self.unseen)} ways (`unseen`)"))
        return facts

    def _outside(self) -> str:
        names = ", ".join(self.outside[:NAMED]) + (", ..." if len(self.outside) > NAMED else "")
        return f"{len(self.outside)} of {amount(self.parameters, 'parameter')} in no graph that has run: {names}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        rows = self.rows
        return {
            "model": self.model,
            "how": str(self.how),
            "answer": str(self.answer),
            "rewired": self.rewired,
            "why": self.why,
            "rows_rewired": len(rows.rewired) if rows is not None else 0,
            "rows_asked": len(rows.asked) if rows is not None and rows.asked is not None else None,
            "rows": rows.total if rows is not None else 0,
            "left_out": {name: list(terms) for name, terms in self.left_out.items()},
            "overlap": [one.to_json() for one in self.overlap],
            "no_overlap": self.no_overlap,
            "manifest": self.manifest,
            "graphs": dict(self.graphs),
            "graph_breaks": list(self.graph_breaks),
            "outside": list(self.outside),
            "parameters": self.parameters,
            "unseen": list(self.unseen),
            "reports": [report.to_json() for report in self.reports],
        }
