# SPDX-License-Identifier: Apache-2.0
"""The sources of this repository, as the tests of this folder read them: nothing is imported."""

from __future__ import annotations

import ast
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PLACES = {"farskip_compile": ROOT / "farskip_compile", "passes": ROOT / "passes", "models": ROOT / "models"}
"""Where the code of the package stands; the last two are installed inside the first."""

SOURCES = ROOT / "farskip_compile.egg-info" / "SOURCES.txt"
"""In an unpacked sdist, its own list."""


def is_checkout() -> bool:
    """Whether this is a repository, and not an unpacked sdist."""
    return (ROOT / ".git").exists()


@functools.cache
def own_files() -> tuple[str, ...]:
    """The files that belong here, as paths from the root: what git does not ignore, or what the sdist lists."""
    if is_checkout():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    else:
        names = SOURCES.read_text(encoding="utf-8").splitlines()
    return tuple(sorted(name for name in names if (ROOT / name).is_file()))


def modules() -> dict[str, Path]:
    """The file of each module of the installed package."""
    found = {}
    for place, folder in PLACES.items():
        first = ("farskip_compile",) if place == "farskip_compile" else ("farskip_compile", place)
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            name = ".".join((*first, *(parts[:-1] if parts[-1] == "__init__" else parts)))
            found[name] = file
    return found


def imports(name: str, file: Path, known: dict[str, Path]) -> Iterator[tuple[str, bool]]:
    """The modules of ours that a module imports, at the top or lazily, and whether it happens when it is imported.

    `from package import name` is an import of the module `package.name` if there is one, else of the package.
    """
    tree = ast.parse(file.read_text())
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node, at_once in _walk(tree, at_once=True):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                above = package.rsplit(".", node.level - 1)[0]
                base = f"{above}.{base}" if base else above
            members = [f"{base}.{alias.name}" for alias in node.names]
            targets = [member if member in known else base for member in members]
        for target in dict.fromkeys(targets):
            while target and target not in known:
                target = target.rpartition(".")[0]
            if target:
                yield target, at_once


def _walk(node: ast.AST, at_once: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_once
        elif not _for_types_only(child):
            yield from _walk(child, at_once and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method with its qualified name."""
    for node in ast.iter_child_nodes(tree):
        name = f"{prefix}{node.name}" if hasattr(node, "name") else prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, node
        yield from functions(node, f"{name}." if isinstance(node, ast.ClassDef | ast.FunctionDef) else prefix)
