# SPDX-License-Identifier: Apache-2.0
"""Experiments: what a node would be if other values were different.

In:    a graph and one batch, run through it step by step.
Out:   `Lab`: values of nodes; `run` and `run_path` with other inputs; all ranks come to the same verdicts.
Never: changes a value that the graph computed: what an operator writes to is copied before.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile.healing.fold.tape import Course, Gathering
from farskip_compile.passes.graph import ops

Agree = Callable[[bool], bool]
"""Whether it is so on all ranks."""


class CannotTry(Exception):
    """A node works on values that live within a transformation (`torch.vmap`) alone."""


class Lab:
    """See the module. Values are kept until `forget`; `held`: the placeholders of parameters and buffers."""

    def __init__(self, course: Course, given: Sequence[Any], held: Collection[fx.Node], agree: Agree) -> None:
        self.course, self.agree = course, agree
        self.interpreter = Gathering(course.module, garbage_collect_values=False)
        placeholders = [node for node in course.nodes if node.op == "placeholder"]
        self.values: dict[fx.Node, Any] = dict(zip(placeholders, given, strict=True))
        self._before: dict[fx.Node, dict[fx.Node, Any]] = {}
        self._after: dict[fx.Node, Any] = {}
        self._bases = {base for bases in course.written.values() for base in bases}
        self._nested = _nested(course.nodes)
        self._at = 0
        self.weights = _weights(course.nodes, held)
        """Nodes whose numbers are those of parameters, whatever picks them."""

    @torch.no_grad()
    def advance(self, place: int) -> None:
        """Run all nodes up to `place`, and keep their values."""
        for node in self.course.nodes[self._at : place + 1]:
            if node.op not in ("placeholder", "output"):
                written = {base: self.values[base] for base in self.course.written.get(node, ())}
                self._before[node] = {base: value.clone() for base, value in written.items()}
                self.interpreter.env = self.values
                self.values[node] = self.interpreter.run_node(node)
                if written:
                    self._after[node] = next(iter(written.values())).clone()
                elif node in self._bases:
                    self._after[node] = self.values[node].clone()
        self._at = max(self._at, place + 1)

    def forget(self, place: int) -> None:
        """Let go of what is made before `place` and used by no node from `place` on."""
        place = min(place, self._at)
        for node in [one for one in self.values if one.op != "placeholder" and self.course.place[one] < place]:
            if self.course.last_use[node] < place:
                del self.values[node]
                self._before.pop(node, None)
                self._after.pop(node, None)

    def value(self, node: fx.Node) -> Any:
        """What `node` is; a distributed parameter as a whole."""
        found = self.values[node]
        return found.full_tensor() if hasattr(found, "full_tensor") else found

    def result(self, node: fx.Node) -> Any:
        """What `node` gave when it ran, whatever was written to it later; of one that writes, what it wrote."""
        return self._after[node] if node in self._after else self.value(node)

    def written_by(self, node: fx.Node) -> Collection[fx.Node]:
        """The nodes whose values `node` writes to."""
        return self.course.written.get(node, ())

    @torch.no_grad()
    def run(self, node: fx.Node, instead: Mapping[fx.Node, Any]) -> Any:
        """What `result` would be if some values were others.

        Raises:
            CannotTry: it is not known.
        """
        if node in self._nested:
            raise CannotTry
        for arg in node.all_input_nodes:
            if arg not in self.values and arg not in instead:
                self.values[arg] = self.run(arg, {})
        own = {base: instead.get(base, before).clone() for base, before in self._before.get(node, {}).items()}
        self.interpreter.env = ChainMap(own, dict(instead), self.values)  # type: ignore[assignment]
        found = self.interpreter.run_node(node)
        return next(iter(own.values())) if own else found

    def run_path(self, path: Sequence[fx.Node], instead: Mapping[fx.Node, Any]) -> Any:
        """The last of `path` if some values were others: all of it is run again, in order."""
        now = dict(instead)
        for node in path:
            now[node] = self.run(node, now)
        return now[path[-1]]

    def path(self, start: fx.Node, between: Collection[fx.Node]) -> list[fx.Node]:
        """The nodes in `between`, but for the last one, that depend on `start`, in graph order."""
        found: dict[fx.Node, None] = {start: None}
        for node in sorted(between, key=self.course.place.__getitem__)[:-1]:
            if any(arg in found for arg in node.all_input_nodes):
                found[node] = None
        return [node for node in found if node is not start]


def _nested(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """What stands between the beginning and the end of a transformation of functions."""
    found, depth = set(), 0
    for node in nodes:
        name = ops.op_name(node)
        depth += name.endswith("increment_nesting")
        if depth:
            found.add(node)
        depth -= name.endswith("decrement_nesting")
    return found


def _weights(nodes: Sequence[fx.Node], parameters: Collection[fx.Node]) -> set[fx.Node]:
    """What is made of parameters and buffers alone.

    Rows of them that a router picks count, those that the input picks, as an embedding does, don't.
    """
    found, asked = set(parameters), set[fx.Node]()
    for node in nodes:
        tensors = [arg for arg in node.all_input_nodes if ops.tensor(arg) is not None]
        numbers = [arg for arg in node.all_input_nodes if is_made_of_floats(arg) or arg in parameters]
        if numbers:
            if all(arg in found for arg in numbers) and asked.isdisjoint(tensors):
                found.add(node)
        elif (node.op == "placeholder" and node not in found) or not asked.isdisjoint(tensors):
            asked.add(node)
    return found


def is_made_of_floats(node: fx.Node) -> bool:
    """Whether `node` holds numbers, or is a tuple of such; no index, no mask, no size."""
    value = ops.fake(node)
    parts = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(part, torch.Tensor) and part.is_floating_point() for part in parts)
