# SPDX-License-Identifier: Apache-2.0
"""One call of a model as a rewired graph, with what each input of the graph is, and where each output of it goes.

In:    a model, and one call of it; which sizes are to vary.
Out:   a `ExportedCall`: Dynamo's graph after the passes of the backend, verified as there; its inputs as parameters,
       leaves of the call's arguments, sizes of these and constants; what the call returns in terms of the graph's
       outputs; and the conditions on sizes under which the graph was made.
Never: runs the model; takes a graph for a call that does more than compute what it returns and write to buffers;
       guesses by names: parameters, arguments and outputs are told by identity.

Algorithm:
1. Give the call tensors of its own, each another object, so that an argument is told by identity; mark what varies.
2. Capture the call (`capture`): the graph is rewired and verified. Let Dynamo's code around the graph run, with
   something in place of the graph that keeps what it is called with and returns marks.
   Objects that this code changes for good are put back, and the call is refused.
3. Inputs: what it was called with. Outputs: where the marks turn up in what the call returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from farskip_compile._compat import CAPTURE_ERRORS, BackendCompilerFailed
from farskip_compile._compat.exporting import Conditions, each_open_size, let_vary, objects_changed, symbol_of
from farskip_compile._compat.trees import Structure, leaves_of, put_together
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.errors import ConfigError, FarSkipError, PartialModelError, UnsupportedPatternError, Where
from farskip_compile.records.compile import CompileReport
from farskip_compile.tools.capture import Capture, capture
from farskip_compile.tools.explain import not_captured
from farskip_compile.tools.export.contents import Contents


@dataclass(frozen=True)
class ModelTensor:
    """A parameter or buffer of the model."""

    name: str


@dataclass(frozen=True)
class Leaf:
    """A leaf of the call's arguments, by its number."""

    number: int


@dataclass(frozen=True)
class LeafSize:
    """A size of such a leaf."""

    number: int
    dimension: int


@dataclass(frozen=True)
class Constant:
    """A value that does not change from call to call."""

    value: Any


@dataclass(frozen=True)
class Output:
    """An output of the graph, by its number."""

    number: int


InputSource = ModelTensor | Leaf | LeafSize | Constant
Result = ModelTensor | Leaf | Constant | Output


@dataclass(frozen=True)
class ExportedCall:
    """A call of a model, rewired."""

    args: tuple[Any, ...]
    """As given, with tensors of their own: `torch.export`, too, takes one tensor given twice for one input."""
    kwargs: dict[str, Any]
    graph: fx.GraphModule
    inputs: tuple[InputSource, ...]
    """What each placeholder of the graph gets."""
    results: tuple[Result, ...]
    """The leaves of what the call returns."""
    shape: Structure
    """Their structure."""
    conditions: Conditions
    """On the sizes of leaves."""
    conditioned: tuple[int, ...]
    """Which leaves, by number."""
    report: CompileReport


def captured_call(
    model: nn.Module,
    called: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    config: FarSkipConfig | None,
    dynamic_shapes: Any,
) -> ExportedCall:
    """The call `called(*args, **kwargs)` of `model`, or of what is compiled or wrapped around it.

    Raises:
        FarSkipError: it can't be rewired as asked, or does what a program can't.
        ConfigError: a size is to vary that is 0 or 1 in the example, or that of a number.
    """
    leaves, spec = leaves_of((args, dict(kwargs)))
    leaves = [_alias(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]  # 1
    own_args, own_kwargs = put_together(leaves, spec)
    if dynamic_shapes is not None:
        each_open_size(_vary, model, own_args, own_kwargs, dynamic_shapes)
    seen = _Seen()
    try:
        found = capture(called, own_args, own_kwargs, config, then=seen.graph, instead=seen.run)  # 2
    except (FarSkipError, BackendCompilerFailed):
        raise
    except CAPTURE_ERRORS as error:
        why = not_captured(error)
        reason = why.reason + (f" ({why.where})" if why.where else "")
        raise PartialModelError(reason, way_out=why.way_out) from error
    finally:
        changed = seen.restored()
    if changed:
        raise UnsupportedPatternError(
            f"the call changes objects of Python, which a program can't: {', '.join(changed[:5])}",
            way_out="let it return what it changes, or keep tensors in registered buffers and write into these",
        )
    known = _Known(model, leaves, seen)  # 3
    inputs = tuple(map(known.source, seen.placeholders, seen.arguments))
    pairs = zip(inputs, seen.placeholders, strict=True)
    conditioned = {source.number: node for source, node in pairs if isinstance(source, Leaf)}
    returned, shape = leaves_of(found.returned)
    results = tuple(map(known.result, returned))
    conditions = Conditions(list(conditioned.values()))
    return ExportedCall(
        own_args, own_kwargs, found.module, inputs, results, shape, conditions, tuple(conditioned), found.report
    )


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """The same data in an object of its own."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _vary(value: Any, dimension: int) -> None:
    """Mark a size that is to vary.

    Raises:
        ConfigError: the example doesn't show how it varies.
    """
    if dimension < 0:
        raise ConfigError(
            f"dynamic_shapes lets {value!r} vary, which is not the size of a tensor",
            way_out="give it as a tensor, or export a program for each value",
        )
    if value.shape[dimension] < 2:
        raise ConfigError(
            f"dynamic_shapes lets a size vary that is {value.shape[dimension]} in the example (dimension {dimension} "
            f"of {tuple(value.shape)}): of 0 and 1, a graph shows only what holds for them",
            way_out="an example with at least 2 in each dimension that varies",
        )
    let_vary(value, dimension)


class _Mark(int):
    """Stands for a number among the outputs of a graph."""


class _Seen:
    """What ran in place of the graph has seen."""

    def __init__(self) -> None:
        self.placeholders: list[fx.Node] = []
        self.arguments: tuple[Any, ...] = ()
        self.marks: list[Any] = []
        """One for each output of the graph."""
        self._before: list[Contents] = []

    def graph(self, found: Capture, _: Sequence[Any]) -> None:
        """Take down the inputs and outputs of the graph."""
        graph = found.module.graph
        self.placeholders = list(graph.find_nodes(op="placeholder"))
        (outputs,) = graph.output_node().args
        assert isinstance(outputs, tuple | list), "Dynamo's graphs return a tuple"
        for one in outputs:
            value = one.meta.get("example_value") if isinstance(one, fx.Node) else None
            self.marks.append(_Mark() if isinstance(value, torch.SymInt) else torch.empty(0))
        self._before = [Contents(name, value) for name, value in objects_changed()]

    def run(self, *arguments: Any) -> list[Any]:
        """What runs."""
        self.arguments = arguments
        return list(self.marks)

    def restored(self) -> list[str]:
        """Put back what Dynamo's code changed; returns what it was."""
        return [one.name for one in self._before if one.restore()]


class _Known:
    """What values of the call are, by identity."""

    def __init__(self, model: nn.Module, leaves: Sequence[Any], seen: _Seen) -> None:
        self._of: dict[int, Any] = {}
        for number, mark in enumerate(seen.marks):
            self._of[id(mark)] = Output(number)
        for name, value in (*model.named_buffers(), *model.named_parameters()):
            self._of[id(value)] = ModelTensor(name)
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                self._of[id(leaf)] = Leaf(number)
        self._sizes: dict[Any, LeafSize] = {}
        """Of leaves, by their symbol."""
        for node, argument in zip(seen.placeholders, seen.arguments, strict=True):
            leaf = self._of.get(id(argument))
            if isinstance(leaf, Leaf):
                for dimension, size in enumerate(node.meta["example_value"].shape):
                    if (symbol := symbol_of(size)) is not None:
                        self._sizes.setdefault(symbol, LeafSize(leaf.number, dimension))

    def source(self, placeholder: fx.Node, value: Any) -> InputSource:
        """What a placeholder gets.

        Raises:
            UnsupportedPatternError: neither a tensor, nor the size of an argument that the graph takes.
        """
        if (found := self._of.get(id(value))) is not None:
            return found
        if isinstance(value, torch.Tensor):
            return Constant(value)
        if (of := self._sizes.get(symbol_of(placeholder.meta.get("example_value")))) is not None:
            return of
        raise UnsupportedPatternError(
            f"the rewired graph takes {value!r}, which is neither a tensor nor the size of one that it takes",
            way_out="leave sizes of an argument that is used for nothing else out of dynamic_shapes",
            where=Where(node=placeholder.name),
        )

    def result(self, value: Any) -> Result:
        """What a leaf of what the call returns is; a number that may change is an output of the graph.

        Raises:
            UnsupportedPatternError: an object that has no place in a program.
        """
        if (found := self._of.get(id(value))) is not None:
            return found
        if value is None or isinstance(value, bool | int | float | str):
            return Constant(value)
        what = type(value).__name__
        raise UnsupportedPatternError(
            f"the call returns {'a tensor that no graph computes' if isinstance(value, torch.Tensor) else 'a ' + what}",
            way_out="return tensors, in tuples, lists, dictionaries or classes that torch.export.register_dataclass "
            "knows; of models of transformers, give use_cache=False",
        )
