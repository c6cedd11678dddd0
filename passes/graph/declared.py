"""Facts that a user declared, noted on the nodes that they are about.

Contract: `note_declared` writes them into `node.meta`, before anything is read off a graph; `declared` reads one back.
No other place knows of them. A fact about a module holds for all nodes that Dynamo traced in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch import fx

DeclaredKind = Literal["attention", "mixer", "dense", "routed", "reduction"]
KINDS = get_args(DeclaredKind)
KEY = "farskip_declared"
OUTPUTS = "farskip_declared_outputs"
PICKED = "farskip_declared_output"
OPERATOR = re.compile(r"[A-Za-z_]\w*::[A-Za-z_][\w.]*")
MODULE = re.compile(r"[\w.*?\[\]-]+")


@dataclass(frozen=True)
class Declared:
    """What an operator, or a module, was declared to be."""

    name: str
    """`namespace::operator`, an operator of torch, or the path of a module with `*` for a part of it."""
    kind: DeclaredKind | None
    outputs: tuple[DeclaredKind, ...] = ()
    """The kind of each tensor that it returns, if they differ; `kind` is None then."""

    def __post_init__(self) -> None:
        """Raises: ValueError: nothing can have this name, or be of this kind."""
        if not isinstance(self.name, str) or not (OPERATOR.fullmatch(self.name) or MODULE.fullmatch(self.name)):
            raise ValueError(f"{self.name!r} is neither an operator nor a module")
        if (self.kind is None) == (not self.outputs):
            raise ValueError(f"{self.name} is either of one kind, or has a kind for each output")
        for kind in (self.kind,) if self.kind is not None else self.outputs:
            if kind not in KINDS:
                raise ValueError(f"{self.name}: {kind!r} is no kind; one of {', '.join(KINDS)}")

    def __str__(self) -> str:
        return self.kind or f"({', '.join(self.outputs)})"

    def to_json(self) -> str | list[str]:
        """Plain data: the kind, or kinds."""
        return self.kind or list(self.outputs)

    @classmethod
    def from_json(cls, name: str, data: Any) -> Declared:
        """What `to_json` gave.

        Raises:
            ValueError: it is anything else.
        """
        if isinstance(data, list | tuple):
            return cls(name, None, tuple(data))
        return cls(name, data)


def note_declared(graph: fx.Graph, facts: Sequence[Declared], name_of: Any) -> tuple[Declared, ...]:
    """Note `facts` on the nodes that they are about; returns those that are about some.

    `name_of` gives the name of an operator.
    """
    by_operator = {fact.name: fact for fact in facts}
    by_module = [fact for fact in facts if "::" not in fact.name and fact.kind is not None]
    if not facts:
        return ()
    used: set[Declared] = set()
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        fact = by_operator.get(name_of(node))
        if fact is None and by_module:
            paths = list(_modules_of(node))
            fact = next((one for one in by_module if any(fnmatchcase(path, one.name) for path in paths)), None)
        if fact is not None:
            used.add(fact)
            node.meta[KEY] = fact.kind
            if fact.kind is None:
                node.meta[OUTPUTS] = fact.outputs
                _note_outputs(node, fact.outputs)
    return tuple(fact for fact in facts if fact in used)


def _note_outputs(node: fx.Node, outputs: Sequence[DeclaredKind]) -> None:
    """On each node that picks one of the outputs of `node`, what it is."""
    for user in node.users:
        index = user.args[1] if len(user.args) == 2 and user.args[0] is node else None
        if isinstance(index, int) and index < len(outputs):
            user.meta[PICKED] = outputs[index]


def is_declared(node: fx.Node) -> bool:
    """Whether something was declared about the operator or the module of `node`."""
    return KEY in node.meta


def declared(node: fx.Node) -> DeclaredKind | None:
    """What `node` was declared to be; of an operator with several outputs, what the one is that `node` picks."""
    meta = node.meta
    kind: DeclaredKind | None = meta.get(KEY) or meta.get(PICKED)
    return kind


def outputs_of(node: fx.Node) -> tuple[DeclaredKind, ...]:
    """Of an operator whose outputs were declared one by one."""
    return tuple(node.meta.get(OUTPUTS, ()))


def _modules_of(node: fx.Node) -> Iterable[str]:
    """Paths of the modules that `node` was traced in: `layers.3.mixer`."""
    stack = node.meta.get("nn_module_stack") or {}
    for entry in stack.values():
        path = entry[0] if isinstance(entry, tuple) else str(entry)
        yield re.sub(r"\['?([^\]']*)'?\]", r".\1", str(path)).removeprefix("L.self").lstrip(".")
