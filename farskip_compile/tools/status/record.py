# SPDX-License-Identifier: Apache-2.0
"""The status of one model, as a record that people and programs can read.

Contract: plain data, its text in 80 columns and its JSON. Nothing is looked up here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from farskip_compile.records.compile import CompileReport
from farskip_compile.records.record import Answer, PhaseOverlap
from farskip_compile.records.rows import SubBlockRows
from farskip_compile.tools.explain.text import plain
from farskip_compile.tools.status.text import model_status


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
    """The facts about one model in this process, at this moment."""

    model: str
    """Name of the class."""
    how: How
    """How the model is compiled."""
    answer: Answer
    """Whether the model runs rewired."""
    why: str
    """What the answer rests on, if it is not a plain yes."""
    reports: tuple[CompileReport, ...]
    """Reports of the graphs with a residual stack that the answer is about, the one that ran last at the end; or the
    report that was put together of the layers."""
    overlap: tuple[PhaseOverlap, ...]
    """Expected overlap, for each phase that has run and is scheduled."""
    no_overlap: str
    """Why `overlap` is empty, if it is."""
    manifest: str
    """Whether the model was compiled by a manifest, or carries one."""
    graphs: tuple[tuple[str, int], ...]
    """The outcomes of the model's graphs, also of losses and parts, and how many graphs have each."""
    graph_breaks: tuple[str, ...]
    """Where Dynamo ended a graph of the model, and why."""
    outside: tuple[str, ...]
    """Names of parameters that no graph has run with: of parts that are not compiled, or by another backend, or that
    were added or replaced since."""
    parameters: int
    """Number of parameters."""
    unseen: tuple[str, ...] = ()
    """Ways to run the model as it is written that leave no trace; see docs/training.md."""

    @property
    def rewired(self) -> bool:
        """Return whether the model is known to run rewired, as asked."""
        return self.answer is Answer.REWIRED

    @property
    def rows(self) -> SubBlockRows | None:
        """Sub-blocks that were to change and those that did; None: no graph with a residual stack has run."""
        return self.reports[-1].asked_rows if self.reports else None

    @property
    def left_out(self) -> dict[str, tuple[str, ...]]:
        """Names of the terms that each sub-block leaves out, by the name of the sub-block."""
        return self.reports[-1].left_out if self.reports else {}

    def __str__(self) -> str:
        return plain(lambda _: model_status(self))

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `json.dumps`."""
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
            "overlap": [asdict(one) for one in self.overlap],
            "no_overlap": self.no_overlap,
            "manifest": self.manifest,
            "graphs": dict(self.graphs),
            "graph_breaks": list(self.graph_breaks),
            "outside": list(self.outside),
            "parameters": self.parameters,
            "unseen": list(self.unseen),
            "reports": [report.to_json() for report in self.reports],
        }
