# SPDX-License-Identifier: Apache-2.0
"""Graphs that are drawn by calling operators, with a value beside each node, as Dynamo leaves them.

Contract: `Drawing` holds a graph over a stream `x` and other inputs. What is called on its proxies is run at once; a
call that PyTorch refuses leaves no node. `wrong` says what is claimed of the graph, and not so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile.verify.rows.read import begin, read_rows
from tests.verify.row_oracle import disagreements


class Drawing(fx.Tracer):
    """A graph over a stream of shape [B, S, D]."""

    def __init__(self, shape: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        self.graph = fx.Graph(tracer_cls=type(self))
        self.root = torch.nn.Module()
        self.inputs: list[torch.Tensor] = []
        self.values: dict[fx.Node, Any] = {}
        self.generator = torch.Generator().manual_seed(seed)
        self.x = self.input("x", torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64))

    def input(self, name: str, value: torch.Tensor) -> fx.Proxy:
        """Another input of the graph."""
        self.inputs.append(value)
        return self.create_proxy("placeholder", name, (), {})

    def random(self, *shape: int) -> torch.Tensor:
        """Numbers for an input."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Proxy:
        """Add a node, and run it."""
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        node = proxy.node
        try:
            node.meta["example_value"] = self.values[node] = self._run(node)
        except BaseException:
            self.graph.erase_node(node)
            raise
        return proxy

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.inputs[-1].clone()
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Proxy:
        """A call that Python itself would not hand to a proxy."""
        return self.create_proxy("call_function", function, args, kwargs)

    def wrong(self) -> list[str]:
        """The claims that numbers contradict."""
        self.graph.output(())
        module = fx.GraphModule(self.root, self.graph)
        (stream, *_) = self.graph.nodes
        begins = begin([stream])
        return disagreements(module, self.inputs, read_rows(self.graph.nodes, begins), begins)
