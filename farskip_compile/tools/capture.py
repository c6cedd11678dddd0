# SPDX-License-Identifier: Apache-2.0
"""Capture a model without compiling or running it.

Contract: in come a model and the inputs of one call; out comes the graph of its residual stack, rewired once as
`torch.compile` would have handed it to the inner backend (`capture`), or as often as wanted and differentiated
(`with_graphs`). Nothing is computed: the call ends where the compiled stack would begin. Only code around it runs:
graphs that hold no residual stack, and what stands outside of graphs, if the model was compiled without `fullgraph`.
Compiled code of this process is forgotten (`torch.compiler.reset`).

Algorithm, for both:
1. Compile the model with this backend; one that is compiled already stays as it is.
2. Call it. Every backend of this package hands its graphs over (`backend.intercept`), so that a model that is compiled
   already is captured with just the configuration that it was compiled with, however and wherever that was done.
3. Once the graph is known, end the call by an exception that no `except Exception` of the model catches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import fx, nn

from farskip_compile._compat.aot import aten_graphs
from farskip_compile._compat.modules import is_compiled
from farskip_compile.compiler.backend import Backend, Receive, intercept
from farskip_compile.compiler.config import FarSkipConfig, resolve
from farskip_compile.compiler.inductor_passes.before_differentiation import cut_before_differentiation
from farskip_compile.compiler.inductor_passes.plan import profile_to_schedule
from farskip_compile.compiler.inner import Compiled
from farskip_compile.compiler.pipeline import run
from farskip_compile.compiler.ranks.failures import unreported
from farskip_compile.errors import NoResidualStackError, PartialModelError
from farskip_compile.passes.schedule.collectives import normalize_collectives
from farskip_compile.records.compile import CompileReport, Outcome, publish

T = TypeVar("T")


@dataclass(frozen=True)
class Capture:
    """What the backend made of one call of a model."""

    report: CompileReport
    module: fx.GraphModule
    """The graph after rewiring, before differentiation. Its fake values are good for shapes and types."""
    backend: Backend
    """With the configuration that was in force."""
    returned: Any = None
    """What the call returned, if something ran in place of the graph."""


Then = Callable[[Capture, Sequence[Any]], None]
"""Gets the capture, and the example inputs of its graph, while Dynamo still compiles. It may use the graph up."""


def capture(
    model: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    config: FarSkipConfig | None = None,
    *,
    then: Then | None = None,
    instead: Compiled | None = None,
    parts: bool = False,
) -> Capture:
    """Capture the call `model(*args, **kwargs)` of a module or a function that calls one, and rewire its graph.

    `config` is what the backend is asked for, whatever the model may have been compiled with. None: the model is
    compiled with this backend, and captured as it was compiled. `then` is called with the capture. `instead`
    runs in place of the graph, with its inputs; None: the call ends there. `parts`: under `none`, also of a graph that
    isn't a whole stack (`Outcome.FRAGMENT`).

    Raises:
        FarSkipError: the model can't be rewired as asked.
        PartialModelError: it isn't a whole residual stack, or not one that is understood.
        NoResidualStackError: no graph with a residual stack was captured.
    """
    found: list[Capture] = []
    received = 0

    def receive(backend: Backend, module: fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        nonlocal received
        received += 1
        report = backend.rewire(module)
        publish(report, None)
        if report.outcome is Outcome.NO_STACK:  # a model that is one graph has no other
            return _stop if config is not None else module.forward
        if report.departure is not None:
            raise PartialModelError(
                "the layers of this model are compiled one by one",
                way_out="explain() of what farskip_compile.regional has returned; its undo() puts the model back",
            )
        if report.outcome is Outcome.FRAGMENT and not parts:
            raise PartialModelError(report.reason, way_out="give the whole model, from token ids to logits")
        found.append(Capture(report, module, backend))
        if then is not None:
            then(found[-1], inputs)
        return instead or _stop

    returned = _call(model, args, kwargs or {}, Backend(config) if config is not None else None, receive)
    if not received and config is None:
        raise PartialModelError(
            "farskip received no graph of this model: it is compiled with another backend, or Dynamo met a graph break "
            "in a loop and gave it up",
            way_out='torch.compile(model, backend="farskip", fullgraph=True)',
        )
    if not found:
        raise NoResidualStackError(
            "the model has no residual stack: no sum that a sub-block reads from",
            way_out="give the whole model, from token ids to logits",
        )
    return replace(found[-1], returned=returned)


@dataclass(frozen=True)
class Graphs:
    """One step under one configuration, as the scheduler sees it."""

    phases: tuple[tuple[str, fx.Graph], ...]
    """`inference`, or `forward` and `backward`, with their ATen graphs, whose collectives are launches and waits."""
    report: CompileReport
    """Of the passes on the graph of Dynamo."""
    module: fx.GraphModule
    """That graph, rewired."""


class GraphsOf(Protocol):
    """Makes the graphs of one configuration."""

    def __call__(self, config: FarSkipConfig) -> Graphs:
        """See `with_graphs` for what it raises."""
        ...


def with_graphs(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    use: Callable[[GraphsOf], T],
    *,
    backward: bool,
) -> T:
    """Call `use` with a function that makes ATen graphs, and return what it returns.

    `module` is in parallel form, on ranks (real or fake ones). `use` may ask for the graphs of as many configurations
    as it likes, one after another; each is the caller's own. `backward`: a training step, not a call without gradients.

    Raises:
        FarSkipError: the model can't be rewired as a configuration asks.
    """
    found: list[T] = []

    def receive(_: Backend, captured: fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        def graphs(config: FarSkipConfig) -> Graphs:
            rewired = fx.GraphModule(captured, copy.deepcopy(captured.graph))
            report = run(rewired, config)
            resolved = resolve(config)
            if (profile := profile_to_schedule(resolved, rewired)) is not None:
                cut_before_differentiation(rewired, resolved, profile)
            phases = tuple(aten_graphs(rewired, inputs))
            for _, graph in phases:
                normalize_collectives(graph)
            return Graphs(phases, report, rewired)

        found.append(use(graphs))
        return _stop

    with torch.set_grad_enabled(backward):
        _call(module, args, kwargs, Backend(FarSkipConfig(inner="eager")), receive)
    return found[0]


class _Captured(BaseException):
    """Ends the call once the graph is known, past every `except Exception` of the model."""


def _stop(*_: Any) -> Any:
    raise _Captured


def _call(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    backend: Backend | None,
    receive: Receive,
) -> Any:
    """Call a model, compiled with `backend` or (None) as it is, until it runs a captured graph.

    Returns what the call returns, if something else runs in place of that graph.
    """
    torch.compiler.reset()
    try:
        called = model if backend is None else compiled_with(model, backend)
        with intercept(receive), unreported():
            return called(*args, **kwargs)
    except _Captured:
        return None
    finally:
        torch.compiler.reset()


def compiled_with(model: Callable[..., Any], backend: Backend) -> Callable[..., Any]:
    """`model`, compiled with this backend alone: with `fullgraph=True`, or as it has been compiled before."""
    if not is_compiled_inside(model):
        compiled: Callable[..., Any] = torch.compile(model, backend=backend, fullgraph=True)
        return compiled

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance("default", force_backend=backend):
            return model(*args, **kwargs)

    return call


def is_compiled_inside(model: Callable[..., Any]) -> bool:
    """Whether a model, or any module in it, has been compiled, with whatever backend."""
    if isinstance(model, nn.Module):
        return any(map(is_compiled, model.modules()))
    return is_compiled(model)
