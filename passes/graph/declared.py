# SPDX-License-Identifier: Apache-2.0
"""Facts that a user declared, noted on the nodes that they are about.

Contract: `note_declared` writes them into `node.meta`, before anything is read off a graph; `declared` reads one back.
No other place knows of them. A fact about a module holds for all nodes that Dynamo traced in it. A collective that was
declared with its wait is a launch and a wait like PyTorch's own; without, it is one operator that blocks. A fact may
also be about an end of the model: an input of the call that is an embedding, or what the call returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch import fx

from farskip_compile._compat import is_module_state
from farskip_compile._compat.marks import COMMUNICATES
from farskip_compile._compat.modules import input_path, module_paths
from farskip_compile.passes.graph.walk import bodies

DeclaredKind = Literal["attention", "mixer", "dense", "routed", "reduction", "exchange", "embedding", "final"]
KINDS = get_args(DeclaredKind)
COLLECTIVES = ("reduction", "exchange")
ENDS = ("embedding", "final")
"""Kinds of the ends of a model: an input of the call that the residual stream begins with; its end, if a model returns
that without a norm."""
RETURN = "return"
"""The name of what a call returns, as in `__annotations__`."""
CollectivePart = Literal["launch", "wait", "blocking"]
KEY = "farskip_declared"
END = "farskip_declared_end"
NAME = "farskip_declared_name"
GROUP = "farskip_declared_group"
OUTPUTS = "farskip_declared_outputs"
PICKED = "farskip_declared_output"
OPERATOR = re.compile(r"[A-Za-z_]\w*::[A-Za-z_][\w.]*")
MODULE = re.compile(r"[\w.*?\[\]-]+")


@dataclass(frozen=True)
class Declared:
    """What an operator, or a module, was declared to be."""

    name: str
    """`namespace::operator`, an operator of torch, the path of a module with `*` for a part of it, an input of the
    call, or `return`."""
    kind: DeclaredKind | None
    outputs: tuple[DeclaredKind, ...] = ()
    """The kind of each tensor that it returns, if they differ; `kind` is None then."""
    wait: str = ""
    """Of a collective that returns before it is done: the operator that takes its result, and returns it when it is."""
    group: str = ""
    """Of a collective: the parameter that is the name of its process group; empty: `group_name`, if there is one."""

    def __post_init__(self) -> None:
        """Raises: ValueError: nothing can have this name, or be of this kind."""
        if not isinstance(self.name, str) or not (OPERATOR.fullmatch(self.name) or MODULE.fullmatch(self.name)):
            raise ValueError(f"{self.name!r} is neither an operator nor a module")
        if (self.kind is None) == (not self.outputs):
            raise ValueError(f"{self.name} is either of one kind, or has a kind for each output")
        for kind in (self.kind,) if self.kind is not None else self.outputs:
            if kind not in KINDS:
                raise ValueError(f"{self.name}: {kind!r} is no kind; one of {', '.join(KINDS)}")
        ends = {self.kind, *self.outputs} & set(ENDS)
        if (ends or self.name == RETURN) and (self.kind == "final") != (self.name == RETURN):
            raise ValueError(f"{self.name} can't be {self.kind}: 'return' is 'final', and nothing else is either")
        if ends and ("::" in self.name or self.outputs):
            raise ValueError(
                f"{self.name} can't be {', '.join(sorted(map(str, ends)))}: only an input of the call is an embedding"
            )
        if not all(isinstance(text, str) for text in (self.wait, self.group)):
            raise ValueError(f"{self.name}: wait={self.wait!r} and group={self.group!r} are names")
        if (self.wait or self.group) and (self.kind not in COLLECTIVES or "::" not in self.name):
            raise ValueError(f"{self.name}: only operators that are a reduction or an exchange have a wait and a group")
        if self.wait and (self.wait == self.name or not OPERATOR.fullmatch(self.wait)):
            raise ValueError(f"{self.name}: wait={self.wait!r} is not the name of another operator")

    def __str__(self) -> str:
        return " ".join(
            [
                self.kind or f"({', '.join(self.outputs)})",
                *([f"that {self.wait} waits for"] if self.wait else []),
                *([f"on the process group {self.group}"] if self.group else []),
            ]
        )

    def to_json(self) -> str | list[str] | dict[str, str]:
        """Plain data: the kind, or kinds; of a collective with a wait or a group those besides."""
        if self.wait or self.group:
            return {"kind": self.kind or "", "wait": self.wait, "group": self.group}
        return self.kind or list(self.outputs)

    @classmethod
    def from_json(cls, name: str, data: Any) -> Declared:
        """What `to_json` gave.

        Raises:
            ValueError: it is anything else.
        """
        if isinstance(data, list | tuple):
            return cls(name, None, tuple(data))
        if isinstance(data, Mapping):
            if unknown := sorted(map(str, data.keys() - {"kind", "wait", "group"})):
                raise ValueError(f"{name} is declared with {', '.join(unknown)}, which nothing has")
            return cls(name, data.get("kind"), (), data.get("wait", ""), data.get("group", ""))
        return cls(name, data)


def note_declared(graph: fx.Graph, facts: Sequence[Declared], name_of: Any) -> tuple[Declared, ...]:
    """Note `facts` on the nodes that they are about; returns those that are about some.

    `name_of` gives the name of an operator.
    """
    by_operator = {fact.name: fact for fact in facts if fact.kind not in ENDS}
    by_wait = {fact.wait: fact for fact in facts if fact.wait}
    ends = [fact for fact in facts if fact.kind in ENDS]
    by_module = [fact for fact in facts if "::" not in fact.name and fact.kind is not None and fact not in ends]
    if not facts:
        return ()
    used = set(_note_ends(graph, ends))
    for node in _calls(graph):
        name = name_of(node)
        if name in by_wait:
            node.meta[COMMUNICATES] = "wait"
            continue
        fact = by_operator.get(name)
        if fact is not None and fact.kind in COLLECTIVES:
            node.meta[COMMUNICATES] = "launch" if fact.wait else "blocking"
            node.meta[GROUP] = fact.group
        if fact is None and by_module:
            paths = list(modules_of(node))
            matches = ((one, path) for one in by_module for path in paths if fnmatchcase(path, one.name))
            fact, name = next(matches, (None, name))
        if fact is not None:
            used.add(fact)
            node.meta[KEY], node.meta[NAME] = fact.kind, name
            if fact.kind is None:
                node.meta[OUTPUTS] = fact.outputs
                _note_outputs(node, fact.outputs)
    return tuple(fact for fact in facts if fact in used)


def _note_ends(graph: fx.Graph, facts: Sequence[Declared]) -> Iterator[Declared]:
    """Note `facts` on the inputs of the call and on its output; yield those that are about one."""
    for fact in facts:
        nodes = graph.find_nodes(op="output" if fact.name == RETURN else "placeholder")
        found = [node for node in nodes if fact.name == RETURN or _is_input(node, fact.name)]
        for node in found:
            node.meta[END] = fact.kind
        if found:
            yield fact


def _is_input(node: fx.Node, name: str) -> bool:
    path = input_path(node)
    return not is_module_state(node) and any(fnmatchcase(one, name) for one in (path, path.rpartition(".")[-1]))


def declared_end(node: fx.Node) -> DeclaredKind | None:
    """Return the kind that an input of the call, or its output, was declared to be."""
    end: DeclaredKind | None = node.meta.get(END)
    return end


def _calls(graph: fx.Graph) -> Iterator[fx.Node]:
    """All calls, also in the bodies of higher-order operators such as an `autograd.Function`."""
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            yield node
            for body in bodies(node):
                yield from _calls(body.graph)


def collectives_among(facts: Sequence[Declared]) -> tuple[Declared, ...]:
    """Those that are about an operator that communicates."""
    return tuple(fact for fact in facts if fact.kind in COLLECTIVES and "::" in fact.name)


def _note_outputs(node: fx.Node, outputs: Sequence[DeclaredKind]) -> None:
    """On each node that picks one of the outputs of `node`, what it is."""
    for user in node.users:
        index = user.args[1] if len(user.args) == 2 and user.args[0] is node else None
        if isinstance(index, int) and index < len(outputs):
            user.meta[PICKED] = outputs[index]


def is_declared(node: fx.Node) -> bool:
    """Whether something was declared about the operator or the module of `node`."""
    return KEY in node.meta


def part_of_a_collective(node: fx.Node) -> CollectivePart | None:
    """Which part of a collective that was declared `node` is; `blocking`: all of it. None: it is none."""
    part: CollectivePart | None = node.meta.get(COMMUNICATES)
    return part


def group_parameter(node: fx.Node) -> str:
    """Of a launch that was declared, the parameter that is the name of its process group, if it was said."""
    return str(node.meta.get(GROUP, ""))


def declared(node: fx.Node) -> DeclaredKind | None:
    """What `node` was declared to be; of an operator with several outputs, what the one is that `node` picks."""
    meta = node.meta
    kind: DeclaredKind | None = meta.get(KEY) or meta.get(PICKED)
    return kind


def declared_name(node: fx.Node) -> str:
    """Return the operator, or the path of the module, by which something was declared of `node`."""
    return str(node.meta.get(NAME, ""))


def outputs_of(node: fx.Node) -> tuple[DeclaredKind, ...]:
    """Of an operator whose outputs were declared one by one."""
    return tuple(node.meta.get(OUTPUTS, ()))


def modules_of(node: fx.Node) -> Iterator[str]:
    """Yield paths in the model of the modules that `node` was traced in: `layers.3.mixer`."""
    stack = node.meta.get("nn_module_stack") or {}
    for entry in stack.values():
        yield from module_paths(str(entry[0] if isinstance(entry, tuple) else entry))
