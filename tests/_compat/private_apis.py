# SPDX-License-Identifier: Apache-2.0
"""Which names of PyTorch a source file uses, read off its syntax tree; nothing of the package is imported.

In:    the path of a Python file.
Out:   `Source`: full names of PyTorch that it touches, attributes that it reads off objects of unknown class, whole
       strings; with lines.
Never: imports or runs the file: a name that PyTorch has dropped must be named, before anything fails for want of it.

Names are followed through imports, aliases (`ddp = torch.nn.parallel.DistributedDataParallel`), attributes and
`getattr(x, "name")` with a constant. What a call returns has no known class: its attributes count as unknown.
"""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMPAT = ROOT / "farskip_compile" / "_compat"
PACKAGE = tuple(ROOT / name for name in ("farskip_compile", "passes", "models"))
SEMI_PRIVATE = ("torch.fx.experimental", "torch.utils.flop_counter", "torch.distributed.distributed_c10d")
"""Modules without an underscore that are documented nowhere."""
ASKING = ("getattr", "hasattr", "setattr", "delattr")


@dataclass(frozen=True, order=True)
class Use:
    """A name and where it stands."""

    name: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.name} ({self.file}:{self.line})"


@dataclass
class Source:
    """What one file says."""

    path: Path
    names: list[Use] = field(default_factory=list)
    """Full dotted names that begin with `torch`."""
    unknown: list[Use] = field(default_factory=list)
    """Attributes of objects whose class the file does not show."""
    own: set[str] = field(default_factory=set)
    """Names that the file itself gives: functions, classes, variables, attributes that it sets on `self`."""
    strings: list[Use] = field(default_factory=list)
    """Strings, docstrings left out."""
    exports: dict[str, str] = field(default_factory=dict)
    """Names at the top level of the file that stand for one of PyTorch: an import or an alias."""


def private(name: str) -> bool:
    """Whether a full name is not for users. Operators are no matter of privacy: graphs are made of them."""
    if name.startswith("torch.ops."):
        return False
    parts = name.split(".")
    semi = any(name == module or name.startswith(f"{module}.") for module in SEMI_PRIVATE)
    return semi or any(part.startswith("_") and not part.startswith("__") for part in parts)


def files(*folders: Path) -> list[Path]:
    """All Python files in the folders, sorted."""
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


@cache
def names_by_string() -> dict[str, Any]:
    """The tables of `_compat/names.py`, a file that imports nothing."""
    return runpy.run_path(str(COMPAT / "names.py"))


@cache
def read(path: Path) -> Source:
    """What `path` uses of PyTorch."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    reader = _Reader(path, tree)
    reader.visit(tree)
    return reader.source


class _Reader(ast.NodeVisitor):
    def __init__(self, path: Path, tree: ast.Module) -> None:
        self.source = Source(path)
        self.file = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
        self.bound = dict(_bindings(tree))
        self.source.exports = {name: full for name, full in self.bound.items() if _is_torch(full)}
        self.docstrings = set(_docstrings(tree))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._name(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._name(f"{node.module}.{alias.name}" if not node.level else "", node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        full = _resolve(node, self.bound)
        if full is not None:
            self._name(full, node)
            return
        if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self":
            self.source.own.add(node.attr)
        self.source.unknown.append(Use(node.attr, self.file, node.lineno))
        self.visit(node.value)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.source.own.add(node.id)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.source.own.add(node.name)
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.source.own.add(node.name)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in ASKING and len(node.args) > 1:
            asked = node.args[1]
            if isinstance(asked, ast.Constant) and isinstance(asked.value, str):
                full = _resolve(node.args[0], self.bound)
                if full is not None:
                    self._name(f"{full}.{asked.value}", node)
                else:
                    self.source.unknown.append(Use(asked.value, self.file, node.lineno))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and id(node) not in self.docstrings:
            self.source.strings.append(Use(node.value, self.file, node.lineno))

    def _name(self, full: str, node: ast.stmt | ast.expr) -> None:
        if _is_torch(full):
            self.source.names.append(Use(full, self.file, node.lineno))


def _is_torch(full: str) -> bool:
    return full == "torch" or full.startswith("torch.")


def _resolve(node: ast.expr, bound: dict[str, str]) -> str | None:
    """The full name that a chain of attributes stands for, if it begins with a name that an import or alias binds."""
    if isinstance(node, ast.Name):
        return bound.get(node.id)
    if isinstance(node, ast.Attribute) and (base := _resolve(node.value, bound)) is not None:
        return f"{base}.{node.attr}"
    return None


def _bindings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Local name -> full name, of imports anywhere in the file and of aliases, in the order of the file."""
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                full = alias.name if alias.asname else alias.name.split(".")[0]
                bound[alias.asname or full] = full
        elif isinstance(node, ast.ImportFrom) and not node.level:
            bound.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            full = _resolve(node.value, bound)
            if full is not None and _is_torch(full):
                bound[node.targets[0].id] = full
    yield from bound.items()


def _docstrings(tree: ast.Module) -> Iterator[int]:
    """Identities of the string expressions that are statements of their own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield id(node.value)
