# SPDX-License-Identifier: Apache-2.0
"""Evidence that a model ran rewired, and in no other way.

In:    a model that is compiled in place and guarded, the terms that its rows must leave out, and the reports of its
       graphs as they are compiled.
Out:   nothing, or an `OriginalWiringError` with the phase and the first graph that is not as it must be.
Never: takes "it was compiled" for "it ran": the model's forward is guarded, so that a call which nothing traces for
       this backend raises.

Algorithm, at each check:
1. The model is still compiled in place, and still guarded.
2. There is a graph: a run without any did not go through this backend.
3. Every graph was rewired, and each of its rows left out what it must. Without rows to compare with (AMD's keys, or no
   manifest yet), some row left something out, and all graphs agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import nn

from farskip_compile._compat.modules import is_compiled
from farskip_compile.compiler.guard.forward import is_guarded
from farskip_compile.errors import OriginalWiringError
from farskip_compile.manifest.record import Manifest
from farskip_compile.records.compile import CompileReport, Outcome


@dataclass
class ModelEvidence:
    """The reports and batches of one model; `reports` is filled while graphs are compiled."""

    manifest: Manifest | None
    way_out: str
    """The hint of the error."""
    rows: Mapping[str, tuple[str, ...]] | None = None
    """The terms that each row must leave out; None: those of the manifest, or without one those of the first graph."""
    reports: list[CompileReport] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    """The number of batches that ran rewired, by phase."""

    @property
    def left_out(self) -> Mapping[str, tuple[str, ...]]:
        """Return the terms that each row must leave out in every graph, by the name of the row."""
        if self.rows is not None:
            return self.rows
        if self.manifest is not None and self.manifest.table.rows:
            table = self.manifest.table
            return {row.name: tuple(table.names(row.left_out)) for row in table.rows if row.left_out}
        return self.reports[0].left_out if self.reports else {}

    @property
    def graphs(self) -> int:
        """Return the number of graphs. Dynamo may hand one over twice in one compile, with two reports."""
        named = {report.compile_id.partition("_")[0] for report in self.reports if report.compile_id}
        return len(named) + sum(not report.compile_id for report in self.reports)

    def check(self, model: nn.Module, phase: str) -> None:
        """Check the graphs after a batch of `phase`, and count the batch.

        Raises:
            OriginalWiringError: the batch may have run in another wiring than it must.
        """
        if not is_compiled(model) or not is_guarded(model):
            self._refuse(phase, "the model is no longer compiled in place and guarded")
        if not self.reports:
            self._refuse(phase, "no graph reached this backend")
        for report in self.reports:
            if report.outcome not in (Outcome.REWIRED, Outcome.ALREADY):
                self._refuse(phase, f"a graph was not rewired: {report.summary()}")
            if not report.left_out or report.left_out != self.left_out:
                wanted = dict(self.left_out) or "something"
                self._refuse(phase, f"a graph left out {report.left_out or 'nothing'}, not {wanted}")
        self.calls[phase] = self.calls.get(phase, 0) + 1

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `json.dumps`."""
        return {
            "connectivity": self.manifest.to_json()["connectivity"] if self.manifest is not None else None,
            "left_out": {name: list(terms) for name, terms in self.left_out.items()},
            "graphs": self.graphs,
            "batches": dict(self.calls),
        }

    def _refuse(self, phase: str, reason: str) -> NoReturn:
        wanted = f"as {self.manifest} says" if self.manifest is not None else "rewired"
        raise OriginalWiringError(f"{phase} did not run {wanted}: {reason}", way_out=self.way_out)
