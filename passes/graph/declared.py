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
            node.meta[KEY] = fact
            used.add(fact)
    return tuple(fact for fact in facts if fact in used)


def declared(node: fx.Node) -> str | None:
    """What `node` was declared to be; of an operator with several outputs, what the one is that `node` picks."""
    fact = node.meta.get(KEY)
    if isinstance(fact, Declared):
        return fact.kind
    source = node.args[0] if len(node.args) == 2 else None
    if isinstance(source, fx.Node) and isinstance(node.args[1], int):
        fact = source.meta.get(KEY)
        if isinstance(fact, Declared) and node.args[1] < len(fact.outputs):
            return fact.outputs[node.args[1]]
    return None


def _modules_of(node: fx.Node) -> Iterable[str]:
    """Paths of the modules that `node` was traced in: `layers.3.mixer`."""
    stack = node.meta.get("nn_module_stack") or {}
    for entry in stack.values():
        path = entry[0] if isinstance(entry, tuple) else str(entry)
        yield re.sub(r"\['?([^\]']*)'?\]", r".\1", str(path)).removeprefix("L.self").lstrip(".")
