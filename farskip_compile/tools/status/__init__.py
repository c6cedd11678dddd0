# SPDX-License-Identifier: Apache-2.0
"""Is what I run rewired? The answer for one model, from the graphs that have run with its parameters.

In:    a model: as it is, compiled in place, in a wrapper or layer by layer, or wrapped by DDP, FSDP2, PEFT and so on.
Out:   a `Status`: the answer, what it rests on, and what is not known.
Never: compiles, captures or runs anything; takes a graph of another model for one of this; says yes in doubt.

Algorithm:
1. How is the model compiled: the module itself, a wrapper around it, its layers?
2. Which graphs have run with its parameters? Those that PyTorch still keeps, and of these, those with the options of
   the one that ran last. For a model compiled layer by layer, its report is put together.
3. The records of these graphs answer, with what failed since (`records.record`), as they do for `farskip status`. The
   answer is unknown if nothing has run.
4. The answer is no if a call was seen that ran as the model is written (`guard`), or a stance lets every call run so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from farskip_compile._compat.modules import is_compiled, unwrapped
from farskip_compile._compat.reached import stance
from farskip_compile._compat.runs import class_name, named_as_run
from farskip_compile.compiler.guard.compiled import UNSEEN
from farskip_compile.compiler.guard.forward import with_models_inside
from farskip_compile.compiler.guard.report import as_written
from farskip_compile.errors import PartialModelError
from farskip_compile.records.compile import CompileReport
from farskip_compile.records.layered import LayeredModel, graphs_by_layer, layered_model_of, record_of
from farskip_compile.records.record import Answer, CompileRecord, ModelRecord, PhaseOverlap, standing_failures
from farskip_compile.records.registry import COMPILES
from farskip_compile.records.rows import SubBlockRows
from farskip_compile.records.runs import Graph, expected, why_none
from farskip_compile.text_utils import amount
from farskip_compile.tools.status.record import How, Status

__all__ = ["Answer", "How", "PhaseOverlap", "Status", "SubBlockRows", "status"]


def status(model: nn.Module) -> Status:
    """Return whether `model` runs rewired in this process, by the graphs that have run with its parameters.

    Args:
        model: any module: what `torch.compile` returned, one that is compiled in place or layer by layer, or one that
            DDP, FSDP2, PEFT or something else has wrapped. The module is not called.
    """
    inner = unwrapped(model)
    named = list(named_as_run(inner))
    tensors = [tensor for _, alike in named for tensor in alike]
    graphs = COMPILES.graphs_of(tensors)
    whole = layered_model_of(inner)
    how = _how(model, inner, whole, graphs)  # 1
    found = _basis(inner, whole, graphs, tensors)  # 2
    answer, why = _answer(how, found, graphs)  # 3
    if answer is not Answer.NOT_REWIRED and (against := _ran_as_written(model, inner)):
        answer, why = Answer.NOT_REWIRED, against  # 4
    overlap = expected(found.places)
    return Status(
        model=class_name(inner),
        how=how,
        answer=answer,
        why=why,
        reports=tuple(found.reports),
        overlap=overlap,
        no_overlap="" if overlap else why_none(found.places),
        manifest=_manifest(inner, found.reports),
        graphs=tuple(Counter(str(one.report.outcome) for one in graphs).items()),
        graph_breaks=tuple(dict.fromkeys(one.ended_by for one in graphs if one.ended_by)),
        outside=tuple(name for name, alike in named if not COMPILES.graphs_of(alike)),
        parameters=len(named),
        unseen=UNSEEN if how in (How.IN_PLACE, How.WRAPPED, How.INSIDE) else (),
    )


def _how(model: nn.Module, inner: nn.Module, whole: LayeredModel | None, graphs: Sequence[Graph]) -> How:
    if whole is not None:
        return How.LAYERS
    if is_compiled(inner):
        return How.IN_PLACE
    around = [part for part in model.modules() if part is not inner and inner in part.modules()]
    if is_compiled(model) or any(map(is_compiled, around)):
        return How.WRAPPED
    if any(map(is_compiled, inner.modules())):
        return How.INSIDE
    return How.AROUND if graphs else How.NOT


@dataclass(frozen=True)
class _Basis:
    """The facts that an answer rests on."""

    reports: Sequence[CompileReport] = ()
    records: Sequence[CompileRecord] = ()
    """The records of the same compiles."""
    places: Sequence[Sequence[Graph]] = ()
    """The graphs that may run at each place of one step."""
    unclear: str = ""
    """Why nothing can be told, if so."""


def _basis(
    inner: nn.Module, whole: LayeredModel | None, graphs: Sequence[Graph], parameters: Sequence[torch.Tensor]
) -> _Basis:
    if whole is not None:
        if all(whole.model is not part for part in inner.modules()):
            name = class_name(whole.model)
            return _Basis(unclear=f"it is a part of a {name}, whose layers are compiled one by one: ask for that")
        try:
            return _Basis([whole.report], [record_of(whole)], graphs_by_layer(whole))
        except PartialModelError as error:
            return _Basis(unclear=error.reason)
    stacks = [one for one in graphs if one.report.outcome.is_of_model]
    ours = [one for one in stacks if one.stack_is_in(parameters) and not one.is_part]
    if stacks and not ours:
        return _Basis(
            unclear="the graphs that ran with its parameters hold a residual stack that is not all its own: it is a "
            "part of what is compiled, or shares parameters with it; ask for the whole"
        )
    now = [one for one in ours if one.report.config == ours[-1].report.config]
    return _Basis([one.report for one in now], [one.record() for one in now], [now])


def _answer(how: How, found: _Basis, graphs: Sequence[Graph]) -> tuple[Answer, str]:
    if found.records:
        frames = {one.record().frame for one in graphs} - {""}
        stopped = [one for one in standing_failures(COMPILES.records()) if one.kind == "stopped"]
        stopped = [one for one in stopped if one.frame in frames]
        record = ModelRecord(found.records[-1].model, tuple(found.records), tuple(stopped))
        return record.answer, _why(record, found.reports)
    if found.unclear:
        return Answer.UNKNOWN, found.unclear
    if how is How.NOT:
        return Answer.NOT_REWIRED, 'it runs as it is written; model.compile(backend="farskip", fullgraph=True)'
    if graphs:
        return Answer.NOT_REWIRED, f"no graph of it holds a residual stack: {graphs[-1].report.summary()}"
    text = "no graph of farskip has run with a parameter of it: it was not called since, or another backend compiles it"
    if number := COMPILES.graphs_without_parameters():
        text += f"; {amount(number, 'graph')} ran with no parameters at all, whose they are can't be told"
    return Answer.UNKNOWN, text


def _why(record: ModelRecord, reports: Sequence[CompileReport]) -> str:
    """Return what speaks against a yes."""
    pairs = zip(record.graphs, reports, strict=True)
    if bad := [report for one, report in pairs if not one.is_complete]:
        good = len(reports) - len(bad)
        others = f"{good} of {len(reports)} graphs rewired, and one " if good else ""
        return others + bad[-1].summary()
    if not record.failures:
        return ""
    return (
        "Dynamo has stopped compiling it, and runs it as it is written where no earlier graph fits "
        "(torch._dynamo.config.recompile_limit); fullgraph=True makes that an error"
    )


def _ran_as_written(model: nn.Module, inner: nn.Module) -> str:
    if (name := stance()) == "force_eager":
        return f"torch.compiler.set_stance({name!r}) lets it run as it is written"
    for module in dict.fromkeys([model, inner, *with_models_inside(inner)]):
        if (found := as_written(module)) is not None:
            return f"{amount(found.calls, 'call')} ran as it is written; the last one: {found.reason}"
    return ""


def _manifest(model: nn.Module, reports: Sequence[CompileReport]) -> str:
    if not reports:
        return ""
    if digest := reports[-1].config.get("manifest"):
        return f"{digest[:12]}, checked when it was compiled"
    if isinstance(getattr(getattr(model, "config", None), "farskip", None), dict):
        return "its configuration carries one that it was not compiled by: options={'manifest': model.config.to_dict()}"
    return "none: it was compiled by its options alone"
