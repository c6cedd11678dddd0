# SPDX-License-Identifier: Apache-2.0
"""What happened in each compile: one plain record, kept for the user and written to the structured trace.

Contract: a report is made for every graph that the backend receives, rewired or not, refused or not, also when the
caches are warm (the rewiring runs before any cache is asked). It holds names and numbers only, no graph and no tensor.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from farskip_compile._compat import current_compile, trace_artifact
from farskip_compile.passes.boundary.tail import Departure
from farskip_compile.passes.graph.declared import Declared
from farskip_compile.passes.residual.table import SubBlock, Table, TermKind
from farskip_compile.records.registry import COMPILES
from farskip_compile.records.rows import SubBlockRows
from farskip_compile.text_utils import amount

log = logging.getLogger("farskip_compile")


class Outcome(StrEnum):
    """The fate of a graph."""

    REWIRED = "rewired"
    """Its table is the one asked for, and verified."""
    ALREADY = "already in the form asked for"
    """It was written in that form."""
    UNCHANGED = "unchanged as asked"
    """Nothing was asked to be changed."""
    NO_STACK = "no residual stack"
    """Such as a loss or a sampler; compiled as it is."""
    FRAGMENT = "not a whole residual stack, unchanged as asked"
    """Under `connectivity="none"`, a part of a model."""
    REFUSED = "refused, compiled unchanged"
    """With `strict=False`; `reason` says why."""

    @property
    def has_form(self) -> bool:
        """Return whether the graph has the form that was asked for, by rewiring or as it was written."""
        return self in (Outcome.REWIRED, Outcome.ALREADY)

    @property
    def is_of_model(self) -> bool:
        """Return whether the graph is a model's own, and not a loss, a sampler or a part of a model."""
        return self not in (Outcome.NO_STACK, Outcome.FRAGMENT)


@dataclass(frozen=True)
class CompileReport:
    """One graph that the backend received."""

    outcome: Outcome
    """What became of it."""
    nodes: int
    """Nodes of the graph as Dynamo handed it over."""
    config: dict[str, Any] = field(default_factory=dict)
    """`FarSkipConfig.to_json` of what it was compiled with."""
    table: Table = field(default_factory=Table)
    """What each sub-block reads now, and what was taken away from it; empty if there is no residual stack."""
    sub_block_parameters: tuple[str, ...] = ()
    """Parameters that the sub-blocks use, by the names under which the traced code reached them (not in the JSON)."""
    wiring_before: str = ""
    """`standard`, `attention`, `mlp (parallel block)`, `full`, `shortcut MoE` or `other`."""
    wiring_after: str = ""
    """Likewise, of the rewired graph."""
    reason: str = ""
    """Why a graph was refused or left alone."""
    declared: tuple[Declared, ...] = ()
    """Facts about operators and modules of this graph that were not proven, but declared by the user."""
    beside: tuple[str, ...] = ()
    """Parts of the model that have weights and stand beside the stack: left as they are written."""
    compile_id: str = ""
    """Dynamo's id of the compile, as in tlparse: `[frame/recompile]`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each pass."""
    departure: Departure | None = None
    """Of a part of a model: how the stream leaves it."""
    plan: str = ""
    """Of a part of a model: which layers of how many are rewired."""
    checkpoints_opened: int = 0
    """Activation checkpoints whose content was put into the graph, to be read."""
    writes_replaced: int = 0
    """In-place writes that became out of place."""
    collectives_parted: int = 0
    """Linear collectives of a sum that were split in two: what is left out, and the rest."""
    reductions_merged: int = 0
    """Pairs of reductions that `merge_reductions` joined."""
    norms_split: int = 0
    """In a graph of vLLM's: operators that add and take a norm, taken apart before the passes."""
    norms_joined: int = 0
    """Those that were put together again."""
    reductions_started: int = 0
    """In a graph of vLLM's: all-reduces that became a start and a wait."""

    @property
    def rows(self) -> tuple[SubBlock, ...]:
        """The sub-blocks; `table` says more about each."""
        return self.table.rows

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms, in their order."""
        return tuple(term.name for term in self.table.terms)

    @property
    def left_out(self) -> dict[str, tuple[str, ...]]:
        """Names of the terms that the rewiring took away, by name of the sub-block; those that changed only."""
        return {row.name: tuple(self.table.names(row.left_out)) for row in self.rows if row.left_out}

    @cached_property
    def asked_rows(self) -> SubBlockRows:
        """The sub-blocks that were to change, and those that did.

        Sub-blocks of a part of a model are counted as they are: their request depends on what comes before the part.
        """
        if self.outcome is Outcome.REFUSED:
            return SubBlockRows((), None, len(self.rows))
        if self.departure is not None or not self.rows:
            return SubBlockRows(self.rewired_rows, self.rewired_rows, len(self.rows))
        return SubBlockRows.of(self.table, self.config)

    @property
    def rewired_rows(self) -> tuple[str, ...]:
        """Names of the sub-blocks that read something else than before."""
        return tuple(self.left_out)

    def summary(self) -> str:
        """One line for the log."""
        if self.outcome is Outcome.REWIRED:
            layers = 1 + max(row.layer for row in self.rows)
            moe = sum(row.kind is TermKind.ROUTED for row in self.rows)
            return (
                f"rewired {len(self.rewired_rows)} of {amount(len(self.rows), 'sub-block')} "
                f"({amount(layers, 'layer')}, {moe} MoE): {self.wiring_before} -> {self.wiring_after}, verified"
            )
        wiring = f"{self.wiring_before}, " if self.outcome is Outcome.ALREADY else ""
        return f"{self.outcome} ({wiring}{amount(self.nodes, 'node')})" + (
            f": {self.reason.splitlines()[0]}" if self.reason else ""
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "outcome": str(self.outcome),
            "compile_id": self.compile_id,
            "nodes": self.nodes,
            "config": self.config,
            "terms": list(self.terms),
            "wiring_before": self.wiring_before,
            "wiring_after": self.wiring_after,
            "reason": self.reason,
            "declared": {fact.name: fact.to_json() for fact in self.declared},
            "beside": list(self.beside),
            "departure": self._departure_json(),
            "plan": self.plan,
            "seconds": self.seconds,
            "checkpoints_opened": self.checkpoints_opened,
            "writes_replaced": self.writes_replaced,
            "collectives_parted": self.collectives_parted,
            "reductions_merged": self.reductions_merged,
            "norms_split": self.norms_split,
            "norms_joined": self.norms_joined,
            "reductions_started": self.reductions_started,
            "sub_blocks": [self._row_json(row) for row in self.rows],
        }

    def _departure_json(self) -> dict[str, Any] | None:
        if self.departure is None:
            return None
        return {
            "apart": self.table.names(self.departure.apart),
            "stays": dict(self.departure.stays),
            "parts": self.departure.extra,
        }

    def _row_json(self, row: SubBlock) -> dict[str, Any]:
        names = self.table.names
        return {
            "name": row.name,
            "layer": row.layer,
            "kind": str(row.kind),
            "terms": names(row.terms),
            "evidence": self.table.evidence(row),
            "where": self.table.where(row),
            "collectives": list(self.table.collectives(row)),
            "reads_before": names(row.reads_as_written),
            "reads_after": names(row.reads),
            "left_out": names(row.left_out),
            "skipped_before": names(self.table.skipped(row)),
        }


def last_reports() -> tuple[CompileReport, ...]:
    """Return the reports of this process, oldest first: one for each graph that the backend received (the last 256)."""
    with COMPILES.lock:
        return tuple(report for _, report in COMPILES.reports)


def earlier_outcome() -> Outcome | None:
    """Return the outcome of the last graph of the function that is being compiled again; None if there was none."""
    compile_id, _ = current_compile()
    number = compile_id.partition("_")[0].rpartition("/")[2]
    if not number.isdigit() or int(number) == 0:
        return None
    frame = frame_of(compile_id)
    found = [report for report in last_reports() if frame_of(report.compile_id) == frame]
    return found[-1].outcome if found else None


def frame_of(compile_id: str) -> str:
    """Return the number of the function in Dynamo's id of a compile: `3` of `3/1`."""
    return compile_id.partition("_")[0].rpartition("/")[0]


def clear_reports() -> None:
    """Forget all reports."""
    with COMPILES.lock:
        COMPILES.reports.clear()


def publish(report: CompileReport, callback: Callable[[CompileReport], None] | None) -> CompileReport:
    """Keep `report`, log it, write it to the structured trace (`TORCH_TRACE`, tlparse), and call `callback` with it.

    Dynamo may analyse a frame twice in one compile; the second report then takes the place of the first.

    Returns:
        The report with the id of the compile.
    """
    compile_id, compiling = current_compile()
    report = replace(report, compile_id=compile_id)
    with COMPILES.lock:
        reports = COMPILES.reports
        if reports and compiling is not None and reports[-1][0] == compiling:
            reports.pop()
        reports.append((compiling, report))
    log.info("%s", report.summary())
    trace_artifact("farskip_report", lambda: json.dumps(report.to_json(), indent=1))
    if callback is not None:
        callback(report)
    return report
