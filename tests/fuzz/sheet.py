# SPDX-License-Identifier: Apache-2.0
"""A captured graph on the table, to be spoiled: choose nodes, insert others, make fake values anew.

In:    a `GeneratedNetwork`.
Out:   a graph module that runs, with a fake value on each node as Dynamo leaves it, and arguments for it.
Never: asks a pass anything.

Edits are structural: they insert nodes and redirect uses, without fake values. `finish` runs the graph for real and
then once on fake tensors, which notes shapes, dtypes and shared memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from farskip_compile.testing.strategies import capture
from farskip_compile.testing.strategies.network import WIDTH, GeneratedNetwork, state
from tests.fuzz.fakes import set_fake_values
from tests.fuzz.machine import run_nodes

IN_PLACE_NAMES = ("add_", "mul_", "copy_", "iadd", "imul")


class Unfit(Exception):
    """An edit finds nothing in this graph that it could be applied to."""


class Sheet:
    """The graph of `network`, open for edits."""

    def __init__(self, network: GeneratedNetwork) -> None:
        self.network = network
        self.module = capture(network).module
        self.graph = self.module.graph
        self.rng = random.Random(0)
        self.symbolic = False
        self.hides = False
        """An edit may hide what depends on what, from measuring."""
        self.without_meta: list[fx.Node] = []
        """Nodes whose fake values get lost at the end."""
        self.constants = 0
        self.arguments: list[Any] = list(network.inputs())
        for node in [node for node in self.graph.nodes if node.op == "placeholder"][1:]:
            self.arguments.append(state(str(node.target), tuple(node.meta["example_value"].shape)))

    # Choosing

    @property
    def order(self) -> dict[fx.Node, int]:
        return {node: index for index, node in enumerate(self.graph.nodes)}

    @property
    def output(self) -> fx.Node:
        return next(iter(reversed(self.graph.nodes)))

    def like_stream(self, node: fx.Node) -> bool:
        value = node.meta.get("example_value")
        batch, sequence = self.network.batch, self.network.sequence
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return False
        return tuple(value.shape) in ((batch, sequence, WIDTH), (batch * sequence, WIDTH))

    def floats(self) -> list[fx.Node]:
        """Everything that is computed and has the stream's shape, and the embedding."""
        return [node for node in self.graph.nodes if node.op.startswith("call") and self.like_stream(node)]

    def sums(self) -> list[fx.Node]:
        """Additions of two tensors of the stream's shape."""
        return [
            node
            for node in self.floats()
            if any(name in node.name for name in ("add", "sub"))
            and len(node.args) == 2
            and all(isinstance(arg, fx.Node) and self.like_stream(arg) for arg in node.args)
            and node.args[0].meta["example_value"].shape == node.args[1].meta["example_value"].shape
        ]

    def pick(self, nodes: list[fx.Node]) -> fx.Node:
        if not nodes:
            raise Unfit
        return self.rng.choice(nodes)

    def any_float(self) -> fx.Node:
        """A node of the stream's shape; in half of the cases a sum."""
        sums = self.sums()
        return self.pick(sums if sums and self.rng.random() < 0.5 else self.floats())

    def earlier(self, node: fx.Node) -> fx.Node:
        """Another node of the same shape in front of `node`."""
        order, shape = self.order, node.meta["example_value"].shape
        return self.pick(
            [n for n in self.floats() if order[n] < order[node] and n.meta["example_value"].shape == shape]
        )

    # Editing

    @contextmanager
    def behind(self, node: fx.Node) -> Iterator[None]:
        """Insert what is made right behind `node` (behind all inputs, for an input)."""
        while node.next.op == "placeholder":
            node = node.next
        with self.graph.inserting_before(node.next):
            yield

    @contextmanager
    def somewhere_behind(self, node: fx.Node) -> Iterator[None]:
        """Insert what is made at any place behind `node`."""
        order = self.order
        places = [n for n in self.graph.nodes if order[n] >= order[node] and n.op not in ("placeholder", "output")]
        with self.behind(self.rng.choice(places)):
            yield

    def call(self, target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
        kind = self.graph.call_method if isinstance(target, str) else self.graph.call_function
        return kind(target, args, kwargs)

    def constant(self, value: torch.Tensor, *, parameter: bool = True) -> fx.Node:
        """A parameter or a buffer of the module, read at the place of insertion."""
        name = f"constant_{self.constants}"
        self.constants += 1
        if parameter:
            self.module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        else:
            self.module.register_buffer(name, value)
        return self.graph.get_attr(name)

    def input(self, name: str, value: torch.Tensor) -> fx.Node:
        """One more input of the call."""
        last = [node for node in self.graph.nodes if node.op == "placeholder"][-1]
        with self.graph.inserting_after(last):
            node = self.graph.placeholder(name)
        self.arguments.append(value)
        return node

    def feed(self, node: fx.Node, new: fx.Node) -> None:
        """Let all that stands behind `new` read it instead of `node`."""
        order = self.order
        while not node.users and any(name in node.name for name in IN_PLACE_NAMES):
            node = node.args[0]  # Dynamo's in-place nodes have no users: later ones go on reading the argument
        for user in list(node.users):
            if order[user] > order[new]:
                user.replace_input_with(node, new)

    def also_return(self, node: Any) -> None:
        self.output.args = ((*self.output.args[0], node),)

    # Finishing

    def finish(self) -> fx.GraphModule:
        """The spoiled graph, with fake values.

        Raises:
            Exception: of any kind, if the graph can't be run: the edits made no program.
        """
        self.graph.lint()
        run_nodes(self.module, self.arguments)
        set_fake_values(self.module, self.arguments, symbolic=self.symbolic)
        for node in self.without_meta:
            node.meta.pop("example_value", None)
        self.module.recompile()
        return self.module
