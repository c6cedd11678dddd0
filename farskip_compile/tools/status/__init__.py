# SPDX-License-Identifier: Apache-2.0
"""Is what I run rewired? The answer for one model, from the graphs that have run with its parameters.

In:    a model: as it is, compiled in place, in a wrapper or layer by layer, or wrapped by DDP, FSDP2, PEFT and so on.
Out:   a `Status`: the answer, what it rests on, and what is not known.
Never: compiles, captures or runs anything; takes a graph of another model for one of this; says yes in doubt.

Algorithm:
1. How is it compiled: the module itself, a wrapper around it, its layers?
2. Which graphs have run with its parameters (`report.ran`)? Those that PyTorch still keeps, and of these, those with
   the options of the one that ran last. For a model compiled layer by layer, its report is put together.
3. The answer is yes if all of them that hold a residual stack have the form that was asked for, and Dynamo has not
   stopped compiling what they are of. It is unknown if nothing has run.
4. It is no if a call was seen that ran as the model is written (`guard`), or a stance lets every call run so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from farskip_compile._compat.modules import is_compiled, unwrapped
from farskip_compile._compat.reached import stance
from farskip_compile._compat.runs import class_name, frame_of, given_up, named_as_run
from farskip_compile.compiler.guard.compiled import UNSEEN
from farskip_compile.compiler.guard.forward import with_models_inside
from farskip_compile.compiler.guard.report import as_written
from farskip_compile.errors import PartialModelError
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.records.expected import PhaseOverlap, expected, why_none
from farskip_compile.records.ran import Graph, graphs_of, without_parameters
from farskip_compile.records.rows import SubBlockRows
from farskip_compile.records.wholes import LayeredModel, graphs_by_layer, whole_of
from farskip_compile.text_utils import amount
from farskip_compile.tools.status.record import Answer, How, Status

__all__ = ["Answer", "How", "PhaseOverlap", "Status", "SubBlockRows", "status"]

YES = (Outcome.REWIRED, Outcome.ALREADY)
NO_MODEL = (Outcome.NO_STACK, Outcome.FRAGMENT)


def status(model: nn.Module) -> Status:
    """Whether `model` runs rewired in this process, by the graphs that have run with its parameters.

    Args:
        model: any module: what `torch.compile` returned, one that is compiled in place or layer by layer, or one that
            DDP, FSDP2, PEFT or something else has wrapped. It is not called.
    """
    inner = unwrapped(model)
    named = list(named_as_run(inner))
    tensors = [tensor for _, alike in named for tensor in alike]
    graphs = graphs_of(tensors)
    whole = whole_of(inner)
    how = _how(model, inner, whole, graphs)  # 1
    found = _found(inner, whole, graphs, tensors)  # 2
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
        outside=tuple(name for name, alike in named if not graphs_of(alike)),
        parameters=len(named),
        unseen=UNSEEN if how in (How.IN_PLACE, How.WRAPPED, How.INSIDE) else (),
    )


def _how(model: nn.Module, inner: nn.Module, whole: LayeredModel | None, graphs: Sequence[Graph]) -> How:
    if whole is not None:
        return How.LAYERS
    if is_compiled(inner):
        return How.IN_PLACE
    if is_compiled(model) or (inner is not model and any(map(is_compiled, _wrappers(model)))):
        return How.WRAPPED
    if any(map(is_compiled, inner.modules())):
        return How.INSIDE
    return How.AROUND if graphs else How.NOT


def _wrappers(model: nn.Module) -> list[nn.Module]:
    inner = unwrapped(model)
    return [part for part in model.modules() if part is not inner and inner in part.modules()]


@dataclass(frozen=True)
class _Found:
    """What the answer rests on."""

    reports: Sequence[CompileReport] = ()
    places: Sequence[Sequence[Graph]] = ()
    """The graphs that may run at each place of one step."""
    unclear: str = ""
    """Why it can't be told, if it can't."""


def _found(
    inner: nn.Module, whole: LayeredModel | None, graphs: Sequence[Graph], parameters: Sequence[torch.Tensor]
) -> _Found:
    if whole is not None:
        if all(whole.model is not part for part in inner.modules()):
            name = class_name(whole.model)
            return _Found(unclear=f"it is a part of a {name}, whose layers are compiled one by one: ask for that")
        try:
            return _Found([whole.report], graphs_by_layer(whole))
        except PartialModelError as error:
            return _Found(unclear=error.reason)
    stacks = [one for one in graphs if one.report.outcome not in NO_MODEL]
    ours = [one for one in stacks if one.stack_is_in(parameters) and not one.is_part]
    if stacks and not ours:
        return _Found(
            unclear="the graphs that ran with its parameters hold a residual stack that is not all its own: it is a "
            "part of what is compiled, or shares parameters with it; ask for the whole"
        )
    now = [one for one in ours if one.report.config == ours[-1].report.config]
    return _Found([one.report for one in now], [now])


def _answer(how: How, found: _Found, graphs: Sequence[Graph]) -> tuple[Answer, str]:
    if found.reports:
        against = _against(found.reports, graphs)
        return (Answer.NOT_REWIRED, against) if against else (Answer.REWIRED, "")
    if found.unclear:
        return Answer.UNKNOWN, found.unclear
    if how is How.NOT:
        return Answer.NOT_REWIRED, 'it runs as it is written; model.compile(backend="farskip", fullgraph=True)'
    if graphs:
        return Answer.NOT_REWIRED, f"no graph of it holds a residual stack: {graphs[-1].report.summary()}"
    text = "no graph of farskip has run with a parameter of it: it was not called since, or another backend compiles it"
    if number := without_parameters():
        text += f"; {amount(number, 'graph')} ran with no parameters at all, whose they are can't be told"
    return Answer.UNKNOWN, text


def _ran_as_written(model: nn.Module, inner: nn.Module) -> str:
    if (name := stance()) == "force_eager":
        return f"torch.compiler.set_stance({name!r}) lets it run as it is written"
    for module in dict.fromkeys([model, inner, *with_models_inside(inner)]):
        if (found := as_written(module)) is not None:
            return f"{amount(found.calls, 'call')} ran as it is written; the last one: {found.reason}"
    return ""


def _against(reports: Sequence[CompileReport], graphs: Sequence[Graph]) -> str:
    """What speaks against a yes."""
    bad = [one for one in reports if one.outcome not in YES]
    if bad:
        others = (
            f"{len(reports) - len(bad)} of {len(reports)} graphs rewired, and one " if len(bad) < len(reports) else ""
        )
        return others + bad[-1].summary()
    stopped = given_up()
    if not any(stopped.get(frame_of(one.report.compile_id), 0.0) > one.compiled_at for one in graphs):
        return ""
    return (
        "Dynamo has stopped compiling it, and runs it as it is written where no earlier graph fits "
        "(torch._dynamo.config.recompile_limit); fullgraph=True makes that an error"
    )


def _manifest(model: nn.Module, reports: Sequence[CompileReport]) -> str:
    if not reports:
        return ""
    if digest := reports[-1].config.get("manifest"):
        return f"{digest[:12]}, checked when it was compiled"
    if isinstance(getattr(getattr(model, "config", None), "farskip", None), dict):
        return "its configuration carries one that it was not compiled by: options={'manifest': model.config.to_dict()}"
    return "none: it was compiled by its options alone"
