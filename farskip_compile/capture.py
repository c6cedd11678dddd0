"""Capture a model and let the backend rewire it, without compiling or running it.

Contract: in come a model and the inputs of one call; out come the report and the rewired graph of its residual stack,
as `torch.compile` would have handed it to the inner backend. Nothing is computed: the call ends where the compiled
stack would begin. Only code around it runs: graphs that hold no residual stack, and what stands outside of graphs, if
the model was compiled without `fullgraph`. Compiled code of this process is forgotten (`torch.compiler.reset`).

Algorithm: within `backend.taking`, every farskip backend of this thread rewires what it gets, but hands it over instead
of compiling it. So a model that is compiled already is captured with just the configuration that it was compiled with,
however and wherever inside of it that was done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from farskip_compile._compat.compiled import is_compiled
from farskip_compile.backend import Backend, taking
from farskip_compile.config import FarSkipConfig
from farskip_compile.errors import NoResidualStackError, PartialModelError
from farskip_compile.report.compile import CompileReport, Outcome


@dataclass(frozen=True)
class Capture:
    """What the backend made of one call of a model."""

    report: CompileReport
    module: fx.GraphModule
    """The graph after rewiring, before differentiation. Its fake values are good for shapes and types."""
    backend: Backend
    """With the configuration that was in force."""


Then = Callable[[Capture, Sequence[Any]], None]
"""Gets the capture, and the example inputs of its graph, while Dynamo still compiles. It may use the graph up."""


class _Captured(BaseException):
    """Ends the call once the graph is known, past every `except Exception` of the model."""


def capture(
    model: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    config: FarSkipConfig | None = None,
    *,
    then: Then | None = None,
) -> Capture:
    """Capture the call `model(*args, **kwargs)`.

    Args:
        model: a module, or a function that calls one.
        args: example inputs.
        kwargs: example inputs by name.
        config: what the backend is asked for, whatever the model may have been compiled with. None: the model is
            compiled with this backend, and captured as it was compiled.
        then: called with the capture and the graph's example inputs.

    Raises:
        FarSkipError: the model can't be rewired as asked.
        NoResidualStackError: no graph with a residual stack was captured.
    """
    taken: list[Capture] = []
    received = 0

    def stop(*_: Any) -> Any:
        raise _Captured

    def take(
        rewiring: Backend, module: fx.GraphModule, inputs: Sequence[Any], report: CompileReport
    ) -> Callable[..., Any]:
        nonlocal received
        received += 1
        if report.outcome is Outcome.NO_STACK:  # of a model that is one graph, this was all
            return stop if config is not None else module.forward
        taken.append(Capture(report, module, rewiring))
        if then is not None:
            then(taken[-1], inputs)
        return stop

    torch.compiler.reset()
    try:
        called = model if config is None else compiled_with(model, Backend(config))
        with taking(take):
            called(*args, **(kwargs or {}))
    except _Captured:
        pass
    finally:
        torch.compiler.reset()
    if not received and config is None:
        raise PartialModelError(
            "farskip received no graph of this model: it is compiled with another backend, or Dynamo met a graph break "
            "in a loop and gave it up",
            way_out='torch.compile(model, backend="farskip", fullgraph=True)',
        )
    if not taken:
        raise NoResidualStackError(
            "the model has no residual stack: no sum that a sub-block reads from",
            way_out="give the whole model, from token ids to logits",
        )
    return taken[-1]


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
