# SPDX-License-Identifier: Apache-2.0
"""The pages of the root and of docs/, and the names that the package calls public: read, not imported."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.structure.sources import ROOT, modules

DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
MODULES = modules()
INTERNAL = ("farskip_compile.compiler.config", "farskip_compile.base.reading")
"""They say what other modules of the package may import; `FarSkipConfig` is public elsewhere."""
_MARKDOWN = MarkdownIt("commonmark").enable("table")


class _Loader(yaml.SafeLoader):
    """Lets the functions that mkdocs.yml names be names."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def site() -> dict[str, Any]:
    """The configuration of the site."""
    found: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)
    return found


def tokens(page: Path) -> list[Token]:
    """What CommonMark sees in a page, without front matter."""
    return _MARKDOWN.parse(page.read_text())


def links(page: Path) -> Iterator[str]:
    """Where its links and pictures lead."""
    for token in tokens(page):
        for child in token.children or ():
            if child.type in ("link_open", "image"):
                yield str(child.attrs["href" if child.type == "link_open" else "src"])


def anchors(page: Path) -> list[str]:
    """What a link may have after its `#`: headings, as GitHub names them, and what a reference page documents."""
    found = []
    parsed = tokens(page)
    for token, text in itertools.pairwise(parsed):
        if token.type == "heading_open":
            plain = "".join(child.content for child in text.children or ())
            found.append(re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-"))
    return found + directives(page)


def directives(page: Path) -> list[str]:
    """The names that mkdocstrings puts onto a page."""
    return re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)


@functools.cache
def tree_of(module: str) -> ast.Module:
    """The source of a module, parsed."""
    return ast.parse(MODULES[module].read_text())


class Name(NamedTuple):
    """Where something is defined."""

    module: str
    name: str


@functools.cache
def definition(path: str) -> Name:
    """Of `module.name`, whatever module imports it from another."""
    module, _, name = path.rpartition(".")
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "") in MODULES:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return definition(f"{node.module}.{alias.name}")
    return Name(module, name)


def node_of(found: Name) -> ast.stmt:
    """The statement that defines it; of a function with overloads, the one with a body."""
    nodes = [node for node in tree_of(found.module).body if found.name in _defines(node)]
    return nodes[-1]


def _defines(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def public_names() -> dict[Name, str]:
    """What `__all__` of each public module lists, and all error classes: the definition, and a path to it."""
    found = {}
    for module in MODULES:
        if "._" in module or module in INTERNAL:
            continue
        for node in tree_of(module).body:
            if "__all__" in _defines(node):
                names = ast.literal_eval(node.value)  # type: ignore[attr-defined]
                found.update({definition(f"{module}.{name}"): f"{module}.{name}" for name in names})
    errors = "farskip_compile.errors"
    for node in tree_of(errors).body:
        if isinstance(node, ast.ClassDef):
            found.setdefault(Name(errors, node.name), f"{errors}.{node.name}")
    return found
