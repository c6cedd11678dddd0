# SPDX-License-Identifier: Apache-2.0
"""One call of a model as a rewired graph, with the origin of each input of the graph and of each result of the call.

In:    a model, and one call of it; the sizes that are to vary.
Out:   an `ExportedCall`: Dynamo's graph after the passes of the backend, verified as there; its inputs as parameters,
       leaves of the call's arguments, sizes of these and constants; the results of the call in terms of the graph's
       outputs; and the conditions on sizes under which the graph was made.
Never: runs the model; accepts a call that does more than compute its results and write to buffers; guesses by names:
       parameters, arguments and outputs are known by identity.

Algorithm:
1. Give the call tensors of its own, each another object, so that an argument is known by identity; mark the sizes that
   vary.
2. Capture the call (`capture`): the graph is rewired and verified. Let Dynamo's code around the graph run, with a
   recorder in place of the graph that keeps its arguments and returns marks. Objects that this code changes for good
   are put back, and the call is refused.
3. Inputs: the recorder's arguments. Outputs: the places of the marks in the results of the call.
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
from farskip_compile.tools.export.object_state import ObjectState


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
    """A size of a leaf of the call's arguments."""

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
    """The arguments, each tensor an object of its own: `torch.export` takes one tensor given twice for one input."""
    kwargs: dict[str, Any]
    graph: fx.GraphModule
    inputs: tuple[InputSource, ...]
    """The source of each placeholder of the graph."""
    results: tuple[Result, ...]
    """The leaves of the value that the call returns."""
    shape: Structure
    """The structure of that value."""
    conditions: Conditions
    """Conditions on the sizes of leaves."""
    conditioned: tuple[int, ...]
    """The numbers of the leaves with conditions."""
    report: CompileReport


def captured_call(
    model: nn.Module,
    called: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    config: FarSkipConfig | None,
    dynamic_shapes: Any,
) -> ExportedCall:
    """Capture the call `called(*args, **kwargs)` of `model`, where `called` may be compiled or wrapped around it.

    Raises:
        FarSkipError: the call can't be rewired as requested, or does what a program can't.
        ConfigError: a size that is to vary is 0 or 1 in the example, or belongs to a number.
    """
    leaves, spec = leaves_of((args, dict(kwargs)))
    leaves = [_own_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]  # 1
    own_args, own_kwargs = put_together(leaves, spec)
    if dynamic_shapes is not None:
        each_open_size(_mark_varying, model, own_args, own_kwargs, dynamic_shapes)
    recorder = _Recorder()
    try:
        found = capture(called, own_args, own_kwargs, config, then=recorder.take_graph, instead=recorder.run)  # 2
    except (FarSkipError, BackendCompilerFailed):
        raise
    except CAPTURE_ERRORS as error:
        why = not_captured(error)
        reason = why.reason + (f" ({why.where})" if why.where else "")
        raise PartialModelError(reason, way_out=why.way_out) from error
    finally:
        changed = recorder.restore()
    if changed:
        raise UnsupportedPatternError(
            f"the call changes objects of Python, which a program can't: {', '.join(changed[:5])}",
            way_out="return the changed values, or keep tensors in registered buffers and write into these",
        )
    values = _CallValues(model, leaves, recorder)  # 3
    inputs = tuple(map(values.source, recorder.placeholders, recorder.arguments))
    pairs = zip(inputs, recorder.placeholders, strict=True)
    conditioned = {source.number: node for source, node in pairs if isinstance(source, Leaf)}
    returned, shape = leaves_of(found.returned)
    results = tuple(map(values.result, returned))
    conditions = Conditions(list(conditioned.values()))
    return ExportedCall(
        own_args, own_kwargs, found.module, inputs, results, shape, conditions, tuple(conditioned), found.report
    )


def _own_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same data in an object of its own."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _mark_varying(value: Any, dimension: int) -> None:
    """Mark a size as one that varies.

    Raises:
        ConfigError: the example doesn't show how the size varies.
    """
    if dimension < 0:
        raise ConfigError(
            f"dynamic_shapes lets {value!r} vary, which is not the size of a tensor",
            way_out="pass a tensor, or export a program for each value",
        )
    if value.shape[dimension] < 2:
        raise ConfigError(
            f"dynamic_shapes lets a size vary that is {value.shape[dimension]} in the example (dimension {dimension} "
            f"of {tuple(value.shape)}): a graph of a size 0 or 1 holds for that size alone",
            way_out="pass an example with at least 2 in each dimension that varies",
        )
    let_vary(value, dimension)


class _Mark(int):
    """The mark of a number among the outputs of a graph."""


class _Recorder:
    """A callable in place of the graph that records its arguments and returns marks."""

    def __init__(self) -> None:
        self.placeholders: list[fx.Node] = []
        self.arguments: tuple[Any, ...] = ()
        self.marks: list[Any] = []
        """A mark for each output of the graph."""
        self._states: list[ObjectState] = []

    def take_graph(self, found: Capture, _: Sequence[Any]) -> None:
        """Record the inputs and outputs of the graph, and the state of objects that the call may change."""
        graph = found.module.graph
        self.placeholders = list(graph.find_nodes(op="placeholder"))
        (outputs,) = graph.output_node().args
        assert isinstance(outputs, tuple | list), "Dynamo's graphs return a tuple"
        for one in outputs:
            value = one.meta.get("example_value") if isinstance(one, fx.Node) else None
            self.marks.append(_Mark() if isinstance(value, torch.SymInt) else torch.empty(0))
        self._states = [ObjectState(name, value) for name, value in objects_changed()]

    def run(self, *arguments: Any) -> list[Any]:
        """Record the arguments, and return the marks."""
        self.arguments = arguments
        return list(self.marks)

    def restore(self) -> list[str]:
        """Put back the objects that Dynamo's code changed, and return their names."""
        return [state.name for state in self._states if state.restore()]


class _CallValues:
    """The values of the call that are known by identity."""

    def __init__(self, model: nn.Module, leaves: Sequence[Any], recorder: _Recorder) -> None:
        self._by_identity: dict[int, Any] = {}
        for number, mark in enumerate(recorder.marks):
            self._by_identity[id(mark)] = Output(number)
        for name, value in (*model.named_buffers(), *model.named_parameters()):
            self._by_identity[id(value)] = ModelTensor(name)
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                self._by_identity[id(leaf)] = Leaf(number)
        self._sizes: dict[Any, LeafSize] = {}
        """The sizes of leaves, by their symbols."""
        for node, argument in zip(recorder.placeholders, recorder.arguments, strict=True):
            leaf = self._by_identity.get(id(argument))
            if isinstance(leaf, Leaf):
                for dimension, size in enumerate(node.meta["example_value"].shape):
                    if (symbol := symbol_of(size)) is not None:
                        self._sizes.setdefault(symbol, LeafSize(leaf.number, dimension))

    def source(self, placeholder: fx.Node, value: Any) -> InputSource:
        """Return the source of a placeholder.

        Raises:
            UnsupportedPatternError: neither a tensor, nor the size of an argument that the graph takes.
        """
        if (found := self._by_identity.get(id(value))) is not None:
            return found
        if isinstance(value, torch.Tensor):
            return Constant(value)
        if (size := self._sizes.get(symbol_of(placeholder.meta.get("example_value")))) is not None:
            return size
        raise UnsupportedPatternError(
            f"the rewired graph takes {value!r}, which is neither a tensor nor the size of one that it takes",
            way_out="leave sizes of an argument that the model uses for nothing else out of dynamic_shapes",
            where=Where(node=placeholder.name),
        )

    def result(self, value: Any) -> Result:
        """Return the origin of a leaf of the call's return value. A number that may change is an output of the graph.

        Raises:
            UnsupportedPatternError: the leaf is an object that has no place in a program.
        """
        if (found := self._by_identity.get(id(value))) is not None:
            return found
        if value is None or isinstance(value, bool | int | float | str):
            return Constant(value)
        kind = "a tensor that no graph computes" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise UnsupportedPatternError(
            f"the call returns {kind}",
            way_out="return tensors, in tuples, lists, dictionaries or classes that torch.export.register_dataclass "
            "knows; for models of transformers, pass use_cache=False",
        )
