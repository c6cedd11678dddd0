# SPDX-License-Identifier: Apache-2.0
"""The graph of a model as it is written, the rewired one, and what a batch gives to both.

In:    a model, and the configuration that it is to be rewired with.
Out:   `ChannelTwins`: `teacher` and `student`, from one capture by Dynamo, with the same placeholders; the rewired
       table; for a batch the values of the placeholders, and its logits from what a graph returned.
Never: compiles; runs the model; takes batches of two shapes (they would be two graphs).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from farskip_compile.compiler.config import FarSkipConfig, resolve
from farskip_compile.compiler.pipeline import run
from farskip_compile.errors import ConfigError
from farskip_compile.healing.causal.batches import Batch, caller
from farskip_compile.healing.fold.stand_ins import Parameters
from farskip_compile.healing.fold.tape import Course
from farskip_compile.passes.residual.table import Table, TermKind


class _Given(BaseException):
    """Ends a call of the model once the inputs of its graph are known, past every `except Exception` of the model."""


class ChannelTwins:
    """See the module.

    Raises:
        FarSkipError: at the first call, if the model can't be rewired as asked.
    """

    def __init__(self, model: nn.Module, config: FarSkipConfig) -> None:
        self.model, self.config = model, config
        self.parameters = Parameters(model)
        self.teacher: Course
        self.student: Course
        self.table = self.table_as_written = Table()
        self.names: dict[fx.Node, str] = {}
        """Of the parameters, by placeholder of the student; known after the first batch."""
        self.held: set[fx.Node] = set()
        """Placeholders of parameters and buffers."""
        self._captured = False
        self._function: Callable[..., Any] = _give
        self._call = caller(torch.compile(model, backend=self._receive, fullgraph=True, dynamic=False), model)

    @torch.no_grad()
    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """What the placeholders of both graphs are for this batch; parameters are the model's own."""
        with self.parameters.as_plain():
            try:
                self._function = _give
                self._call(batch)
            except _Given as given:
                found = tuple(self.parameters.real(value) for value in given.args[0])
                self.names = self.names or self._named(found)
                self.held = self.held or self._held(found)
                return found
        raise AssertionError("the graph was not called")

    @torch.no_grad()
    def logits(self, batch: Batch, outputs: Any) -> torch.Tensor:
        """Logits [B, T, V], from what a graph returned for this batch."""
        with self.parameters.as_plain():
            self._function = lambda *_: outputs
            return self._call(batch)

    def terms(self) -> list[tuple[fx.Node, fx.Node]]:
        """The nodes that hold the terms of the residual stream, rewired and as written, without the embedding."""
        here, there = ({node.name: node for node in course.nodes} for course in (self.student, self.teacher))
        pairs = zip(self.table.terms, self.table_as_written.terms, strict=True)
        return [(here[one.node], there[other.node]) for one, other in pairs if one.kind is not TermKind.EMBEDDING]

    def _held(self, given: Sequence[Any]) -> set[fx.Node]:
        pairs = zip(_placeholders(self.student.module), given, strict=True)
        return {node for node, value in pairs if self.parameters.holds(value)}

    def _named(self, given: Sequence[Any]) -> dict[fx.Node, str]:
        pairs = zip(_placeholders(self.student.module), map(self.parameters.name_of, given), strict=True)
        return {node: name for node, name in pairs if name is not None}

    def _receive(self, module: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        if self._captured:
            raise ConfigError(
                "the batches of a fold have several shapes, or take different paths through the model",
                way_out="calibration and held-out batches of one shape, with or without masks alike",
            )
        made = []
        for connectivity, layers in (("none", None), (self.config.connectivity, self.config.layers)):
            asked = replace(self.config, connectivity=connectivity, layers=layers, inner="eager", schedule=False)
            graph = fx.GraphModule(module, copy.deepcopy(module.graph))
            made.append((run(graph, resolve(asked)).table, Course(graph)))
        (self.table_as_written, self.teacher), (self.table, self.student) = made
        self._captured = True

        def call(*given: Any) -> Any:
            return self._function(*given)

        return call


def _give(*given: Any) -> Any:
    raise _Given(given)


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]
