"""The four steps on one Dynamo graph: normalize, residual, rewire, verify.

Contract: `run` edits the graph in place and returns the report, which says what was read off the edited graph, or
raises a `FarSkipError` and leaves the graph as it was. A graph without a residual stack is not touched.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from farskip_compile._compat import callers_graph_break, graph_break_reason, is_module_state, is_resumed
from farskip_compile._compat.modules import child_names
from farskip_compile.config import FarSkipConfig
from farskip_compile.errors import NotASumError, PartialModelError, Where
from farskip_compile.graph_break_hints import known_break
from farskip_compile.manifest import Manifest
from farskip_compile.manifest.check import check_as_written, check_rewired
from farskip_compile.manifest.graph_parameters import graph_parameters
from farskip_compile.passes.gc_pause import collector_paused
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.graph_snapshot import Backup
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.residual.not_a_sum import not_a_sum
from farskip_compile.passes.residual.table import ResidualTable
from farskip_compile.passes.residual.tags import tag_terms
from farskip_compile.passes.rewire import rewire
from farskip_compile.passes.rewire.merge_reductions import merge_reductions
from farskip_compile.passes.rewire.request import Request, ask
from farskip_compile.report.compile import CompileReport, Outcome, row_reports
from farskip_compile.report.wiring import classify_wiring
from farskip_compile.verify.rewiring import snapshot, verify


@dataclass
class Timer:
    """Wall time of each step, in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Add the time of the block to `step`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


def run(module: fx.GraphModule, config: FarSkipConfig) -> CompileReport:
    """Rewire the graph of `module` in place as `config` asks.

    Raises:
        FarSkipError: any reason not to; the graph is then as it was.
    """
    with collector_paused():  # a full collection of a large process costs as much as all passes
        return _run_or_restore(module, config)


def _run_or_restore(module: fx.GraphModule, config: FarSkipConfig) -> CompileReport:
    timer = Timer()
    with timer("backup"):
        backup = Backup(module.graph)
        attributes = child_names(module)
    report = None
    try:
        report = _run(module, config, timer)
    finally:
        if report is None or report.outcome is Outcome.NO_STACK:
            module.graph = backup.restore()
            for name in child_names(module) - attributes:
                delattr(module, name)
    return report


def _run(module: fx.GraphModule, config: FarSkipConfig, timer: Timer) -> CompileReport:
    nodes = len(module.graph.nodes)
    with timer("normalize"):
        normalized = normalize(module)
    with timer("residual"):
        table = _read_whole(module)
    common: dict[str, Any] = {
        "nodes": nodes,
        "config": config.to_json(),
        "seconds": timer.seconds,
        "checkpoints_opened": normalized.checkpoints_opened,
        "writes_replaced": normalized.writes_replaced,
    }
    if table is None:
        return CompileReport(Outcome.NO_STACK, reason="no sum that a sub-block reads from", **common)
    manifest = config.manifest if isinstance(config.manifest, Manifest) else None
    with timer("request"):
        parameters = graph_parameters(table)
        if manifest is not None:
            check_as_written(manifest, table, parameters)
        request = ask(table, config.connectivity, config.layers)
        wanted = request.wanted(table)
        if manifest is not None:
            check_rewired(manifest, wanted)
        before = snapshot(table)
    with timer("rewire"):
        parted = rewire(module, table, request)
        merged = merge_reductions(module) if config.merge_reductions and request.left_out else 0
    with timer("verify"):
        found = verify(module, wanted, before)
    with timer("tag"):
        tag_terms(found.stack.stream, found.stack.regions, found.names)
    module.recompile()
    return CompileReport(
        _outcome(request),
        terms=tuple(term.name for term in table.terms),
        term_kinds=tuple(term.kind for term in table.terms),
        rows=row_reports(table, found.table),
        sub_block_parameters=parameters.used,
        wiring_before=classify_wiring(table),
        wiring_after=classify_wiring(found.table),
        collectives_parted=parted,
        reductions_merged=merged,
        **common,
    )


def _outcome(request: Request) -> Outcome:
    if request.left_out:
        return Outcome.REWIRED
    return Outcome.ALREADY if request.already else Outcome.UNCHANGED


def _read_whole(module: fx.GraphModule) -> ResidualTable | None:
    """The table of `module`, which must hold the whole residual stack.

    Raises:
        PartialModelError: Dynamo cut the stack, or the graph is a single layer.
        NotASumError: the stream is not a sum (and Dynamo did not cut it).
    """
    broken, resumed = graph_break_reason(module), is_resumed(module)
    try:
        table = read_table(module.graph)
    except NotASumError as error:
        if broken or resumed:
            raise _partial("inside a layer", broken or callers_graph_break(), error.where.node) from error
        raise
    if table is None or table.handles is None:
        if (mixer := next((node for node in module.graph.nodes if ops.is_attention(node)), None)) is not None:
            if broken or resumed:
                raise _partial("inside a layer", broken or callers_graph_break(), mixer.name)
            raise not_a_sum(module.graph) or NotASumError(
                "there is attention in the graph, but no residual stream: what the layers add is no sum",
                way_out="compile the whole model; streams that are mixed or scaled by activations are not supported",
                where=ops.where(mixer),
            )
        return None
    stream = table.handles.stream
    outputs = set(next(iter(reversed(module.graph.nodes))).all_input_nodes)
    same_as_root = {stream.root, *(value for value in stream.values if stream.values[value] == table.final)}
    ends_open = not outputs.isdisjoint(same_as_root)
    begins_open = stream.base.op == "placeholder" and not is_module_state(stream.base)
    if broken and ends_open:
        raise _partial("before its end", broken, stream.root.name)
    if resumed and begins_open:
        raise _partial("before its beginning", callers_graph_break(), stream.base.name)
    if begins_open and ends_open and all(user.op == "output" for user in stream.root.users):
        cut = callers_graph_break()
        raise known_break(cut, stream.base.name) or PartialModelError(
            f"the graph begins and ends with the raw residual stream ({len(table.rows)} sub-blocks in it): layers seem "
            "to be compiled one by one, and FarSkip connects two layers"
            + (f", because Dynamo met a graph break: {cut}" if cut else ""),
            way_out='compile the whole model: torch.compile(model, backend="farskip", fullgraph=True)',
            where=ops.where(stream.base),
        )
    return table


def _partial(place: str, reason: str | None, node: str | None) -> PartialModelError:
    return known_break(reason, node) or PartialModelError(
        f"a graph break cuts the residual stack {place}: {reason or 'reason unknown'}",
        way_out="remove the break or move it out of the model; torch.compile(..., fullgraph=True) shows it as an error",
        where=Where(node=node),
    )
