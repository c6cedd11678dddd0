# SPDX-License-Identifier: Apache-2.0
"""One batch on its way through a graph, node by node.

In:    a graph module, and the values of its placeholders.
Out:   `Tape`: `advance` runs nodes up to a place, `fork` is a copy from which the rest can be run, `finish` gives the
       results; the values of `watched` nodes are kept, all others until their last use.
Never: runs a node twice; changes a parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from farskip_compile.passes.graph import effects


class Gathering(fx.Interpreter):
    """Runs nodes on plain tensors: a distributed parameter is gathered where it is used, and let go of again."""

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """See `fx.Interpreter`."""
        return map_aggregate(super().fetch_args_kwargs_from_env(n), _gathered)


def _gathered(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


class Course:
    """A graph as a list of nodes, with their last uses; shared by all its tapes."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.nodes = list(module.graph.nodes)
        self.place = {node: at for at, node in enumerate(self.nodes)}
        self.last_use = {node: max((self.place[user] for user in node.users), default=-1) for node in self.nodes}
        self.written = effects.writers(self.nodes)


class Tape:
    """See the module."""

    def __init__(self, course: Course, given: Sequence[Any], watched: Collection[fx.Node] = ()) -> None:
        self.course, self.watched = course, frozenset(watched)
        self.at = 0
        self.seen: dict[fx.Node, Any] = {}
        self.interpreter = Gathering(course.module, garbage_collect_values=False)
        self._placeholders = [node for node in course.nodes if node.op == "placeholder"]
        self.values: dict[fx.Node, Any] = dict(zip(self._placeholders, given, strict=True))

    @torch.no_grad()
    def advance(self, place: int) -> None:
        """Run all nodes before `place` that were not run yet."""
        while self.at < place:
            self._run(self.course.nodes[self.at])
            self.at += 1

    def finish(self) -> Any:
        """Run the rest; what the graph returns."""
        end = self.course.nodes[-1]
        self.advance(self.course.place[end])
        return fx.map_arg(end.args[0], self.values.__getitem__)

    def ahead(self, node: fx.Node) -> Any:
        """What `node`, which was not run yet, is with the parameters as they are now."""
        tape = self.fork()
        tape.watched = frozenset([node])
        tape.advance(self.course.place[node] + 1)
        return tape.seen[node]

    def fork(self) -> Tape:
        """A tape at the same place, with copies of everything that is not given to the graph, or a view of that."""
        found = Tape.__new__(Tape)
        found.course, found.watched, found.at, found.seen = self.course, frozenset(), self.at, {}
        found.interpreter, found._placeholders = self.interpreter, self._placeholders
        given = {node: self.values[node] for node in self._placeholders if node in self.values}
        memory = {_memory(value) for value in given.values()} - {None}
        kept = {node: value for node, value in self.values.items() if node in given or _memory(value) in memory}
        rest = {node: value for node, value in self.values.items() if node not in kept}
        copied = copy.deepcopy([*rest.values()])  # views of one memory stay views of one memory
        found.values = kept | dict(zip(rest, copied, strict=True))
        return found

    def _run(self, node: fx.Node) -> None:
        if node.op != "placeholder":
            self.interpreter.env = self.values
            self.values[node] = self.interpreter.run_node(node)
        if node in self.watched:
            self.seen[node] = self.values[node]
        for one in (node, *node.all_input_nodes):
            if self.course.last_use[one] <= self.at and one.op != "placeholder":
                self.values.pop(one, None)


def _memory(value: Any) -> int | None:
    """Which memory a plain tensor is in."""
    if not isinstance(value, torch.Tensor) or hasattr(value, "to_local"):
        return None
    return value.untyped_storage().data_ptr()
