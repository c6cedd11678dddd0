# SPDX-License-Identifier: Apache-2.0
"""A described network as an FX graph, as Dynamo would hand it over, and as a function.

Contract: `capture` writes torch IR with fake values, in-place adds without users, and states as inputs or attributes;
the graph runs. `evaluate` computes the network when each sub-block leaves some terms out of what it reads, from the
description alone: no graph, no pass. Both run the same few tensor operations inside the sub-blocks, so that equal
wiring means equal bits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from farskip_compile._compat.fakes import FakeTensorMode
from farskip_compile.testing.strategies.network import ADDS, VOCABULARY, WIDTH, GeneratedNetwork, NetworkBlock, state
from farskip_compile.testing.strategies.network_blocks import Eager, norm, sub_block


class Recorder(Eager):
    """Writes down what is called as a graph, with fake values, as Dynamo does. Parameters are attributes of the module,
    or inputs of the graph."""

    def __init__(self, attributes: bool) -> None:
        self.graph = fx.Graph()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.attributes = attributes
        self.states: dict[str, fx.Node] = {}
        self.last_placeholder: fx.Node | None = None
        self.marks: dict[str, int] = {}
        self.root = nn.Module()

    def placeholder(self, name: str, value: torch.Tensor) -> fx.Node:
        """An input of the graph that looks like `value`."""
        with (
            self.graph.inserting_after(self.last_placeholder)
            if self.last_placeholder
            else self.graph.inserting_before()
        ):
            node = self.graph.placeholder(name)
        self.last_placeholder = node
        node.meta["example_value"] = self.mode.from_tensor(value)
        return node

    def parameter(self, name: str, shape: tuple[int, ...]) -> fx.Node:
        """The node of a parameter, made at its first use."""
        if name not in self.states:
            value = nn.Parameter(state(name, shape), requires_grad=False)
            if self.attributes:
                self.root.register_parameter(name, value)
                node = self.graph.get_attr(name)
                node.meta["example_value"] = self.mode.from_tensor(value)
            else:
                node = self.placeholder(name, value)
            self.states[name] = node
        return self.states[name]

    def call(self, target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
        """The node of a call; a string names a method of the first argument."""
        with self.mode:
            fakes = fx.map_arg((args, kwargs), lambda node: node.meta["example_value"])
            value = super().call(target, *fakes[0], **fakes[1])
        kind = self.graph.call_method if isinstance(target, str) else self.graph.call_function
        node = kind(target, args, kwargs)  # type: ignore[arg-type]
        node.meta["example_value"] = value
        return node

    def mark(self, term: int, value: fx.Node) -> None:
        """Note that only the sub-block of `term` computes this node."""
        self.marks[value.name] = term


@dataclass
class GeneratedGraph:
    """A graph, and the names in it by which terms are recognised."""

    module: fx.GraphModule
    """The graph, as Dynamo would hand it over."""
    marks: dict[str, int]
    """Name of a node that only this term's sub-block computes -> the description's term."""
    states: list[str]
    """Names of the parameters, in the order of their first use."""

    def run(self, network: GeneratedNetwork) -> tuple[torch.Tensor, ...]:
        """What the graph, as it is now, computes with the inputs and parameters of `network`."""
        values = {node.name: node for node in self.module.graph.nodes if node.op == "placeholder"}
        arguments = list(network.inputs())
        for name in list(values)[1:]:
            shape = values[name].meta["example_value"].shape
            arguments.append(state(str(values[name].target), tuple(shape)))
        self.module.recompile()
        outputs: tuple[torch.Tensor, ...] = self.module(*arguments)
        return outputs


def capture(network: GeneratedNetwork) -> GeneratedGraph:
    """The graph of `network` with the wiring of its description."""
    api = Recorder(network.attributes)
    x = api.placeholder("ids" if network.from_ids else "inputs", network.inputs()[0])
    outputs = _walk(network, api, x, {})
    api.graph.output(outputs)
    module = fx.GraphModule(api.root, api.graph)
    return GeneratedGraph(module, api.marks, list(api.states))


def evaluate(
    network: GeneratedNetwork, left_out: Mapping[int, frozenset[int]] | None = None
) -> tuple[torch.Tensor, ...]:
    """The outputs of `network` if each block reads its value without the terms in `left_out` (index of the block ->
    indices of terms; None: nothing). No graph is made."""
    return _walk(network, Eager(), network.inputs()[0], left_out or {})


def _walk(network: GeneratedNetwork, api: Eager, x: Any, left_out: Mapping[int, frozenset[int]]) -> tuple[Any, ...]:
    made: dict[int, Any] = {}
    terms: dict[int, Any] = {}
    norms: dict[tuple[int, str], Any] = {}
    recording = isinstance(api, Recorder)

    def value(index: int, gone: frozenset[int]) -> Any:
        described = network.values[index]
        if index in made and not described.terms & gone:
            return made[index]
        if described.op in ("embedding", "position", "term"):
            (term,) = described.terms
            return None if term in gone else terms[term]
        parts = [value(arg, gone) for arg in described.args]
        return _combine(network, api, index, parts)

    for step in network.steps:
        if isinstance(step, NetworkBlock):
            read = value(step.reads, left_out.get(step.index, frozenset()))
            shared = (step.reads, step.norm) if step.share_norm and recording else None
            normed = norms.get(shared) if shared else None
            if normed is None:
                normed = norm(api, step.norm, read, f"norm_{step.reads if step.share_norm else step.index}")
                if shared:
                    norms[shared] = normed
            for term, out in zip(step.terms, sub_block(network, api, step, normed), strict=True):
                terms[term] = out
            if network.dead_code and recording:
                api.call(operator.add, api.call("mean", read), 1.0)
                api.call(torch.tanh, normed)
            continue
        described = network.values[step]
        if described.op == "embedding":
            term = 0
            terms[term] = (
                api.call(F.embedding, x, api.parameter("table", (VOCABULARY, WIDTH))) if network.from_ids else x
            )
            api.mark(term, terms[term])
        elif described.op == "position":
            (term,) = described.terms
            terms[term] = api.parameter(f"position_{term}", (network.batch, network.sequence, WIDTH))
            api.mark(term, terms[term])
        # an in-place step is recorded where the description has it, and never again
        made[step] = value(step, frozenset())
    final = norm(api, "rms_norm", made[network.chain[-1]], "norm_final")
    logits = api.call(F.linear, final, api.parameter("head", (VOCABULARY, WIDTH)))
    extra = () if network.also_returned is None else (made[network.also_returned],)
    return (logits, *extra)


def _combine(network: GeneratedNetwork, api: Eager, index: int, parts: list[Any]) -> Any:
    """One linear step of the description; None stands for zero."""
    described = network.values[index]
    recording = isinstance(api, Recorder)
    if described.op == "add":
        left, right = parts
        if left is None or right is None:
            rest = right if left is None else left
            return -rest if described.style == "-" and left is None and rest is not None else rest
        style = described.style if recording or described.style == "-" else "+"
        node = api.call(ADDS[style], left, right)
        # Dynamo's `add_` has no users: later nodes go on reading its first argument
        return left if style == "add_" else node
    (part,) = parts
    if part is None:
        return None
    if described.op == "number":
        if described.style == "imul" and recording:
            return api.call(operator.imul, part, 0.75)
        factor = {"left": (0.75, part), "div": (part, 1.25)}.get(described.style, (part, 0.75))
        return api.call(torch.div if described.style == "div" else operator.mul, *factor)
    if described.op == "vector":
        vector = api.parameter(f"vector_{index}", (WIDTH,))
        return api.call(operator.mul, *((vector, part) if described.style == "left" else (part, vector)))
    if described.op == "round":
        return api.call("double", api.call("to", part, torch.float32))
    if described.op == "same":
        return api.call("to", part, torch.float64)
    assert described.op == "view"
    shape = (-1, WIDTH) if described.flat else (network.batch, network.sequence, WIDTH)
    return api.call("reshape" if described.style == "reshape" else "view", part, *shape)
