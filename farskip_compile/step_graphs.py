"""From a model to the ATen graphs that the scheduler sees, for any connectivity.

In:    a module and example inputs, on ranks: real ones or fake ones.
Out:   a function from configurations to `Graphs`: the phases of one step, each with its graph, whose collectives are
       launches and waits.
Never: runs or compiles anything, or reads the graph another way than the backend does: one capture by Dynamo, then for
       each configuration the passes of `pipeline.run`, differentiation by AOTAutograd, `normalize_collectives`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import fx, nn

from farskip_compile._compat.aot import aten_graphs
from farskip_compile.config import FarSkipConfig
from farskip_compile.passes.schedule.collectives import normalize_collectives
from farskip_compile.pipeline import run
from farskip_compile.report.compile import CompileReport

T = TypeVar("T")


@dataclass(frozen=True)
class Graphs:
    """One step under one connectivity."""

    phases: tuple[tuple[str, fx.Graph], ...]
    """`inference`, or `forward` and `backward`, with their graphs."""
    report: CompileReport
    """Of the passes."""
    module: fx.GraphModule
    """The graph of Dynamo, rewired."""


class GraphsOf(Protocol):
    """Makes the graphs of one configuration."""

    def __call__(self, config: FarSkipConfig) -> Graphs:
        """See `with_graphs` for what it raises."""
        ...


class _Captured(BaseException):
    """Ends the call once the graph is known."""


def with_graphs(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    use: Callable[[GraphsOf], T],
    *,
    backward: bool,
) -> T:
    """Call `use` with a function that makes graphs, and return what it returns.

    Args:
        module: in parallel form; captured, not run.
        args: example inputs of one rank.
        kwargs: the same, by name.
        use: may ask for the graphs of as many configurations as it likes, one after another; each is the caller's own.
        backward: a training step instead of a call without gradients.

    Raises:
        FarSkipError: the model can't be rewired as a configuration asks.
    """
    found: list[T] = []

    def receive(captured: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        def graphs(config: FarSkipConfig) -> Graphs:
            rewired = fx.GraphModule(captured, copy.deepcopy(captured.graph))
            report = run(rewired, config)
            phases = tuple(aten_graphs(rewired, inputs))
            for _, graph in phases:
                normalize_collectives(graph, {})
            return Graphs(phases, report, rewired)

        found.append(use(graphs))
        raise _Captured

    torch.compiler.reset()
    try:
        with torch.set_grad_enabled(backward):
            torch.compile(module, backend=receive, fullgraph=True)(*args, **kwargs)
    except _Captured:
        pass
    finally:
        torch.compiler.reset()
    return found[0]
