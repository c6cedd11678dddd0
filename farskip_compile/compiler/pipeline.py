# SPDX-License-Identifier: Apache-2.0
"""From a graph of Dynamo to its FarSkip form: the passes on the Dynamo graph, checked and verified.

Contract: `run` edits the graph in place and returns the report, which says what was read off the edited graph; or it
raises a `FarSkipError` and leaves the graph as it was. A graph without a residual stack is not touched.

Algorithm:
1. Record the graph, in case it has to be restored.
2. Normalise it, and verify that. Read the table off it; it must be complete, account for all weights of the graph, and
   be the one that the manifest describes, if there is a manifest. Under `none` nothing is rewired, so a part of a model
   is let pass, and reported.
3. Translate the request, and record what rewiring must keep.
4. Rewire, and verify.
5. Tag the nodes and report.
6. If the graph is a part of a model, cut the stream at its end, and verify that. What is cut in pieces before
   differentiation is cut before that, so that pieces leave apart; pieces that came in go on to its exchanges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from torch import fx

from farskip_compile._compat.autocast import ambient_autocast
from farskip_compile._compat.modules import child_names
from farskip_compile.compiler.config import FarSkipConfig, Resolved, resolve
from farskip_compile.declare import check_kinds_used
from farskip_compile.errors import (
    ConfigError,
    ConnectivityError,
    FarSkipError,
    NotASumError,
    PartialModelError,
    UnsupportedPatternError,
)
from farskip_compile.manifest.check import check_as_written, check_rewired
from farskip_compile.manifest.graph_parameters import graph_parameters
from farskip_compile.passes import PASSES
from farskip_compile.passes.boundary.again import known_terms, read_again
from farskip_compile.passes.boundary.arrive import Boundary
from farskip_compile.passes.boundary.in_pieces import whole
from farskip_compile.passes.boundary.tail import Departure
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.driver import Driver
from farskip_compile.passes.gc_pause import collector_paused
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.declared import note_declared
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.normalize.accumulations import addends, lower, mark_accumulations
from farskip_compile.passes.normalize.closing import SELECTIVE, close_checkpoints
from farskip_compile.passes.normalize.definitions import lower_definitions
from farskip_compile.passes.normalize.single_assignment import mutation_edges
from farskip_compile.passes.residual import Reading
from farskip_compile.passes.residual.table import Table
from farskip_compile.passes.rewire.request import RewireRequest
from farskip_compile.passes.rewire.told import heard, heard_later
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.records.wiring import classify_wiring
from farskip_compile.verify.account.outside import Beside
from farskip_compile.verify.account.whole import account_for
from farskip_compile.verify.boundary import record, verify_closed, verify_cut, verify_lowered
from farskip_compile.verify.completeness import cut_inside_a_layer
from farskip_compile.verify.normalized.check import verify_normalized
from farskip_compile.verify.reading import check_reading
from farskip_compile.verify.rewiring import Verified, snapshot, verify


class InPieces(Protocol):
    """How the exchanges of a part of a model are cut in pieces."""

    def cut(self, module: fx.GraphModule) -> None:
        """Cut those whose sizes data decides."""

    def hand_on(self, module: fx.GraphModule) -> None:
        """Let pieces of tokens that come in go on to the exchanges of this part, each by itself."""

    def later(self, launch: fx.Node) -> int:
        """In how many pieces another one will be after differentiation."""


def run(module: fx.GraphModule, config: FarSkipConfig, in_pieces: InPieces | None = None) -> CompileReport:
    """Rewire the graph of `module` in place as `config` asks; `in_pieces`: what is to be done to a part of a model
    before it is cut off. To a whole model it can be done later.

    Raises:
        FarSkipError: any reason not to; the graph is then as it was.
    """
    with collector_paused():
        return _run_or_restore(module, resolve(config), in_pieces)


def _run_or_restore(module: fx.GraphModule, config: Resolved, in_pieces: InPieces | None) -> CompileReport:
    facts = {
        "module": module,
        "graph": module.graph,
        "layers": config.layers,
        "autocast": ambient_autocast(module),
        "pieces_later": in_pieces.later if in_pieces is not None else whole,
    }
    driver = Driver(PASSES, Stage.DYNAMO, facts, config.disable_passes)
    backup, attributes = driver.step("backup", GraphSnapshot, module.graph), child_names(module)  # 1
    driver.facts["backup"] = backup
    report = None
    try:
        report = _run(module, config, driver, in_pieces)
    finally:
        if report is None or report.outcome in (Outcome.NO_STACK, Outcome.FRAGMENT):
            module.graph = backup.restore()
            for name in child_names(module) - attributes:
                delattr(module, name)
    return report


def _run(module: fx.GraphModule, config: Resolved, driver: Driver, in_pieces: InPieces | None) -> CompileReport:
    common: dict[str, Any] = {
        "nodes": len(module.graph.nodes),
        "config": config.to_json(),
        "seconds": driver.seconds,
    }
    facts = driver.facts
    try:
        reading, beside = _read_whole(module, driver, config)  # 2
    except (PartialModelError, NotASumError, UnsupportedPatternError) as error:
        if config.connectivity != "none" or config.manifest is not None:
            raise
        return _let_pass(error, facts.get("reading"), common)
    boundary: Boundary = facts["boundary"]
    common["beside"] = tuple(map(str, beside))
    common["declared"] = facts["declared"]
    common["checkpoints_opened"] = boundary.checkpoints_opened + facts["normalized"].checkpoints_opened
    common["writes_replaced"] = facts["normalized"].writes_replaced
    if reading is None:
        return CompileReport(Outcome.NO_STACK, reason="no sum that a sub-block reads from", **common)
    manifest = config.manifest
    table = facts["table"] = reading.table
    parameters = driver.step("parameters", graph_parameters, reading)
    if manifest is not None and not boundary.part:
        driver.step("manifest", check_as_written, manifest, table, parameters)
    facts.update(_asked(config, boundary))
    driver.run(through="request")  # 3
    request: RewireRequest = facts["request"]
    wanted = request.wanted(table)
    if manifest is not None and not boundary.part:
        driver.step("manifest", check_rewired, manifest, wanted)
    before = driver.step("snapshot", snapshot, reading)
    driver.step("verify", check_reading, reading, before.wiring.program.steps)
    if not (config.merge_reductions and request.left_out):
        driver.skip.add("merge_reductions")
    driver.run(through="merge_reductions")  # 4
    found: Verified = driver.verify(verify, module, wanted, before)
    facts.update(stream=found.stack.stream, regions=found.stack.regions, term_names=found.names)  # 5
    driver.run(through="tags")
    departure = _depart(module, driver, found, in_pieces) if boundary.part else None  # 6
    _lower(module, driver)
    if boundary.arrivals and in_pieces is not None:
        in_pieces.hand_on(module)
        driver.facts["graph"] = module.graph
    _close_checkpoints(module, driver)
    driver.finish()
    module.recompile()
    return CompileReport(
        _outcome(request),
        table=found.table,
        sub_block_parameters=parameters.used,
        wiring_before=classify_wiring(table),
        wiring_after=classify_wiring(found.table),
        collectives_parted=facts["collectives_split"],
        reductions_merged=facts.get("reductions_merged", 0),
        departure=departure,
        plan=boundary.plan,
        **common,
    )


def _asked(config: Resolved, boundary: Boundary) -> dict[str, Any]:
    """What is asked of this graph, and of the next one if it is a part of a model.

    Raises:
        ConnectivityError: a table, of which the layer was not told.
        ConfigError: the batch is to go through the whole stack in parts.
    """
    asked = config.connectivity
    if not boundary.part:
        return {"connectivity": asked, "leaving": None}
    if config.micro_batches != 1:
        raise ConfigError(
            f"micro_batches={config.micro_batches} is asked of layers that are compiled one by one: each would put the "
            "batch together again",
            way_out='pieces=2, or the whole model: torch.compile(model, backend="farskip")',
        )
    if not isinstance(asked, Mapping):
        here = asked if boundary.here else "none"
        return {"connectivity": here, "layers": None, "leaving": asked if boundary.later else "none"}
    if isinstance(boundary.here, str) and isinstance(boundary.later, str):
        return {"connectivity": heard(boundary.here), "layers": None, "leaving": heard_later(boundary.later)}
    raise ConnectivityError(
        "a table of sub-blocks is asked of layers that were prepared without one, and don't know their numbers",
        way_out="give the table to farskip_compile.regional(model, table, compile=False), and no options to the loop",
    )


def _depart(module: fx.GraphModule, driver: Driver, found: Verified, in_pieces: InPieces | None) -> Departure:
    """Step 6."""
    driver.facts["table_as_wired"] = found.table
    if in_pieces is not None:
        before_cut = known_terms(found.stack, found.names)
        lower(module.graph)
        in_pieces.cut(module)
        mark_accumulations(module.graph)
        stream, names = driver.step("read again", read_again, module.graph, before_cut)
        driver.facts.update(graph=module.graph, stream=stream, term_names=names)
    before = driver.step("record", record, module.graph)
    driver.run(through="depart")
    departure = replace(driver.facts["departure"], came=driver.facts["boundary"].came)
    driver.verify(verify_cut, module.graph, departure, before)
    return departure


def _lower(module: fx.GraphModule, driver: Driver) -> None:
    """Write out the marks of accumulations and of definitions, and check that the first add what they added."""
    before = record(module.graph) if addends(module.graph) else None
    driver.step("lower", lower, module.graph)
    if before is not None:
        driver.verify(verify_lowered, module.graph, before)
    driver.step("lower", lower_definitions, module.graph)


def _close_checkpoints(module: fx.GraphModule, driver: Driver) -> None:
    """Close those with a selective policy, and check that they open to what was there."""
    before = record(module.graph) if any(SELECTIVE in node.meta for node in module.graph.nodes) else None
    if driver.step("close", close_checkpoints, module):
        assert before is not None
        driver.verify(verify_closed, module, before)


def _let_pass(error: FarSkipError, reading: Reading | None, common: Mapping[str, Any]) -> CompileReport:
    """The report of a part of a model, or of one that is not understood, of which nothing is to be rewired."""
    table = reading.table if reading is not None else Table()
    wiring = classify_wiring(table) if reading is not None else ""
    return CompileReport(
        Outcome.FRAGMENT, table=table, wiring_before=wiring, wiring_after=wiring, reason=str(error), **common
    )


def _read_whole(module: fx.GraphModule, driver: Driver, config: Resolved) -> tuple[Reading | None, tuple[Beside, ...]]:
    """The reading of `module`, which must hold the whole residual stack, and what stands beside it; None: it has none.

    Raises:
        ConfigError: something that is not there was declared.
        PartialModelError: Dynamo cut the stack, or the graph holds a part of a model.
        NotASumError: the stream is not a sum (and Dynamo did not cut it).
        UnsupportedPatternError: not everything with weights is a part of the stack, or of what may stand beside it.
    """
    try:
        driver.run(through="normalize")
        after = mutation_edges(module.graph)
        driver.verify(verify_normalized, module, driver.facts["backup"], after, driver.facts["autocast"])
        part = driver.facts["boundary"].part
        driver.facts["declared"] = driver.step("declare", note_declared, module.graph, config.declared, ops.op_name)
        driver.run(through="residual")
    except NotASumError as error:
        if (cut := cut_inside_a_layer(module, error)) is not None:
            raise cut from error
        raise
    reading: Reading | None = driver.facts.get("reading")
    if reading is not None:
        check_kinds_used(config.kinds, driver.facts["declared"])
    return reading, driver.step("account", account_for, module, reading, part)


def _outcome(request: RewireRequest) -> Outcome:
    if request.left_out:
        return Outcome.REWIRED
    return Outcome.ALREADY if request.already else Outcome.UNCHANGED
