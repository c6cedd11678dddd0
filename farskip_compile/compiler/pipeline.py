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
5. Tag the nodes.
6. If the graph is a part of a model, cut the stream at its end, and verify that. Exchanges that are cut in pieces
   before differentiation are cut before that, so that pieces leave apart.
7. Write out the marks of accumulations and definitions, hand pieces that came in on to the exchanges, and close
   checkpoints; verify each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import fx

from farskip_compile._compat.autocast import ambient_autocast
from farskip_compile.compiler.config import FarSkipConfig, Resolved, resolve
from farskip_compile.compiler.inductor_passes.before_differentiation import PartInPieces
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
from farskip_compile.passes.boundary.again import known_terms, read_again
from farskip_compile.passes.boundary.arrive import Boundary, write_boundary
from farskip_compile.passes.boundary.depart import cut as cut_stream
from farskip_compile.passes.boundary.in_pieces import whole
from farskip_compile.passes.boundary.tail import Departure, TailAutocast
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.gc_pause import collector_paused
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.declared import Declared, note_declared
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.normalize.accumulations import addends, lower, mark_accumulations
from farskip_compile.passes.normalize.closing import SELECTIVE, close_checkpoints
from farskip_compile.passes.normalize.definitions import lower_definitions
from farskip_compile.passes.normalize.single_assignment import mutation_edges
from farskip_compile.passes.residual import Reading, read_table
from farskip_compile.passes.residual.table import Table
from farskip_compile.passes.residual.tags import tag_terms
from farskip_compile.passes.rewire import rewire
from farskip_compile.passes.rewire.merge_reductions import merge_reductions
from farskip_compile.passes.rewire.request import Connectivity, LayerRange, Leaving, RewireRequest, ask
from farskip_compile.passes.rewire.told import heard, heard_later
from farskip_compile.passes.runner import PassRunner
from farskip_compile.passes.safe_edit import OriginalGraph
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.records.wiring import classify_wiring
from farskip_compile.verify.account.whole import account_for
from farskip_compile.verify.boundary import record, verify_closed, verify_cut, verify_lowered
from farskip_compile.verify.completeness import cut_inside_a_layer
from farskip_compile.verify.normalized.check import verify_normalized
from farskip_compile.verify.reading import check_reading
from farskip_compile.verify.rewiring import Verified, snapshot, verify


@dataclass(frozen=True)
class NormalForm:
    """Facts about a graph that was normalised and verified."""

    boundary: Boundary
    autocast: TailAutocast
    """The autocast that the graph will run under."""
    declared: tuple[Declared, ...]
    """The declared facts that concern this graph."""
    checkpoints_opened: int
    writes_replaced: int


@dataclass(frozen=True)
class GraphRequest:
    """The part of the configuration's request that concerns one graph."""

    connectivity: Connectivity
    layers: LayerRange = None
    leaving: Leaving | None = None
    """The request to later parts of the model; None if the graph is a whole model."""


def run(module: fx.GraphModule, config: FarSkipConfig, in_pieces: PartInPieces | None = None) -> CompileReport:
    """Rewire the graph of `module` in place as `config` asks.

    Args:
        module: the graph that Dynamo captured.
        config: the configuration, resolved or not.
        in_pieces: cuts the exchanges of a part of a model before the part is cut off; those of a whole model can be cut
            later.

    Raises:
        FarSkipError: any reason not to; the graph is then as it was.
    """
    resolved = resolve(config)
    with collector_paused():
        passes = PassRunner(Stage.DYNAMO, module, resolved.disable_passes)
        original = passes.step("backup", OriginalGraph, module)  # 1
        try:
            report = _rewire(module, resolved, passes, original, in_pieces)
        except BaseException:
            original.put_back()
            raise
        if report.outcome in (Outcome.NO_STACK, Outcome.FRAGMENT):
            original.put_back()
    return report


def _rewire(
    module: fx.GraphModule,
    config: Resolved,
    passes: PassRunner,
    original: OriginalGraph,
    in_pieces: PartInPieces | None,
) -> CompileReport:
    report = CompileReport(Outcome.NO_STACK, len(module.graph.nodes), config.to_json(), seconds=passes.seconds)
    reading: Reading | None = None
    try:
        with _cuts_inside_layers_named(module):
            form = _normalize(module, config, passes, original)  # 2
            reading = passes.apply("residual", read_table, module.graph)
        if reading is not None:
            check_kinds_used(config.kinds, form.declared)
        outside = passes.step("account", account_for, module, reading, form.boundary.part)
    except (PartialModelError, NotASumError, UnsupportedPatternError) as error:
        if config.connectivity != "none" or config.manifest is not None:
            raise
        return _left_alone(report, error, reading)
    report = replace(
        report,
        beside=tuple(map(str, outside)),
        declared=form.declared,
        checkpoints_opened=form.checkpoints_opened,
        writes_replaced=form.writes_replaced,
    )
    if reading is None:
        return replace(report, reason="no sum that a sub-block reads from")
    return _rewire_stack(module, config, passes, form, reading, report, in_pieces)


def _normalize(module: fx.GraphModule, config: Resolved, passes: PassRunner, original: OriginalGraph) -> NormalForm:
    """Normalise the graph, verify that, and note what was declared about its nodes."""
    autocast = ambient_autocast(module)
    boundary = passes.apply("arrive", write_boundary, module, autocast)
    normalized = passes.apply("normalize", normalize, module)
    after = mutation_edges(module.graph)
    passes.verify(verify_normalized, module, original.snapshot, after, autocast)
    declared = passes.step("declare", note_declared, module.graph, config.declared, ops.op_name)
    opened = boundary.checkpoints_opened + normalized.checkpoints_opened
    return NormalForm(boundary, autocast, declared, opened, normalized.writes_replaced)


@contextmanager
def _cuts_inside_layers_named(module: fx.GraphModule) -> Iterator[None]:
    """Raise a `PartialModelError` in place of a `NotASumError` if Dynamo cut the stack inside a layer."""
    try:
        yield
    except NotASumError as error:
        if (cut := cut_inside_a_layer(module, error)) is not None:
            raise cut from error
        raise


def _rewire_stack(
    module: fx.GraphModule,
    config: Resolved,
    passes: PassRunner,
    form: NormalForm,
    reading: Reading,
    report: CompileReport,
    in_pieces: PartInPieces | None,
) -> CompileReport:
    """Rewire a graph whose whole residual stack was read."""
    table, boundary = reading.table, form.boundary
    manifest = config.manifest if not boundary.part else None
    parameters = passes.step("parameters", graph_parameters, reading)
    if manifest is not None:
        passes.step("manifest", check_as_written, manifest, table, parameters)
    asked = _request_for(config, boundary)
    request = passes.apply("request", ask, table, asked.connectivity, asked.layers, asked.leaving)  # 3
    wanted = request.wanted(table)
    if manifest is not None:
        passes.step("manifest", check_rewired, manifest, wanted)
    before = passes.step("snapshot", snapshot, reading)
    passes.step("verify", check_reading, reading, before.wiring.program.steps)
    parted = passes.apply("rewire", rewire, module, reading, request)  # 4
    merged = 0
    if config.merge_reductions and request.left_out and passes.is_enabled("merge_reductions"):
        merged = passes.apply("merge_reductions", merge_reductions, module, asked.connectivity)
    found = passes.verify(verify, module, wanted, before)
    if passes.is_enabled("tags"):
        passes.apply("tags", tag_terms, found.stack.stream, found.stack.regions, found.names)  # 5
    departure = None
    if boundary.part:
        departure = _cut_off(module, passes, form, found, asked, in_pieces)  # 6
    _write_out_marks(module, passes)  # 7
    if boundary.arrivals and in_pieces is not None:
        in_pieces.hand_on(module)
    _close_checkpoints(module, passes)
    passes.finish()
    module.recompile()
    return replace(
        report,
        outcome=_outcome(request),
        table=found.table,
        sub_block_parameters=parameters.used,
        wiring_before=classify_wiring(table),
        wiring_after=classify_wiring(found.table),
        collectives_parted=parted,
        reductions_merged=merged,
        departure=departure,
        plan=boundary.plan,
    )


def _request_for(config: Resolved, boundary: Boundary) -> GraphRequest:
    """Return the request to this graph, and to the next one if this is a part of a model.

    Raises:
        ConnectivityError: the request is a table, of which the layer was not told.
        ConfigError: the batch is to go through the whole stack in parts.
    """
    asked = config.connectivity
    if not boundary.part:
        return GraphRequest(asked, config.layers)
    if config.micro_batches != 1:
        raise ConfigError(
            f"micro_batches={config.micro_batches} is asked of layers that are compiled one by one: each would put the "
            "batch together again",
            way_out='pieces=2, or the whole model: torch.compile(model, backend="farskip")',
        )
    if not isinstance(asked, Mapping):
        return GraphRequest(asked if boundary.here else "none", leaving=asked if boundary.later else "none")
    if isinstance(boundary.here, str) and isinstance(boundary.later, str):
        return GraphRequest(heard(boundary.here), leaving=heard_later(boundary.later))
    raise ConnectivityError(
        "a table of sub-blocks is asked of layers that were prepared without one, and don't know their numbers",
        way_out="give the table to farskip_compile.regional(model, table, compile=False), and no options to the loop",
    )


def _cut_off(
    module: fx.GraphModule,
    passes: PassRunner,
    form: NormalForm,
    found: Verified,
    asked: GraphRequest,
    in_pieces: PartInPieces | None,
) -> Departure:
    """Cut the exchanges of a part of a model in pieces, then cut its stream at the end, and verify that."""
    stream, names, pieces_later = found.stack.stream, found.names, whole
    if in_pieces is not None:
        before_cut = known_terms(found.stack, found.names)
        lower(module.graph)
        in_pieces.cut(module)
        mark_accumulations(module.graph)
        stream, names = passes.step("read again", read_again, module.graph, before_cut)
        pieces_later = in_pieces.later
    before = passes.step("record", record, module.graph)
    assert asked.leaving is not None
    departure = passes.apply(
        "depart",
        cut_stream,
        module.graph,
        stream,
        names,
        found.table,
        form.boundary,
        asked.leaving,
        form.autocast,
        pieces_later,
    )
    departure = replace(departure, came=form.boundary.came)
    passes.verify(verify_cut, module.graph, departure, before)
    return departure


def _write_out_marks(module: fx.GraphModule, passes: PassRunner) -> None:
    """Write out the marks of accumulations and of definitions, and verify that the first add what they added."""
    before = record(module.graph) if addends(module.graph) else None
    passes.step("lower", lower, module.graph)
    if before is not None:
        passes.verify(verify_lowered, module.graph, before)
    passes.step("lower", lower_definitions, module.graph)


def _close_checkpoints(module: fx.GraphModule, passes: PassRunner) -> None:
    """Close the checkpoints with a selective policy, and verify that they open to what was there."""
    before = record(module.graph) if any(SELECTIVE in node.meta for node in module.graph.nodes) else None
    if passes.step("close", close_checkpoints, module):
        assert before is not None
        passes.verify(verify_closed, module, before)


def _left_alone(report: CompileReport, error: FarSkipError, reading: Reading | None) -> CompileReport:
    """Return the report of a graph of which nothing is rewired: a part of a model, or one that is not understood."""
    table = reading.table if reading is not None else Table()
    wiring = classify_wiring(table) if reading is not None else ""
    return replace(
        report,
        outcome=Outcome.FRAGMENT,
        table=table,
        wiring_before=wiring,
        wiring_after=wiring,
        reason=str(error),
    )


def _outcome(request: RewireRequest) -> Outcome:
    if request.left_out:
        return Outcome.REWIRED
    return Outcome.ALREADY if request.already else Outcome.UNCHANGED
