# SPDX-License-Identifier: Apache-2.0
"""One name, one meaning: a public type name is defined once in the whole package."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from tests.structure.sources import modules

TYPE_NAME = re.compile(r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*")
"""CamelCase; constants are in capitals."""


def type_names(tree: ast.Module) -> Iterator[str]:
    """Classes and aliases at the top of a module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and TYPE_NAME.fullmatch(target.id):
                    yield target.id


def defined_twice(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Modules by each public type name that more than one of them, or one of them twice, defines."""
    found: dict[str, list[str]] = defaultdict(list)
    for module, tree in trees.items():
        for name in type_names(tree):
            if not name.startswith("_"):
                found[name].append(module)
    return {name: homes for name, homes in found.items() if len(homes) > 1}


def test_no_public_type_name_is_defined_twice() -> None:
    assert defined_twice({name: ast.parse(file.read_text()) for name, file in modules().items()}) == {}


def test_a_second_definition_is_found() -> None:
    trees = {"one": ast.parse("class Part: ...\nLIMIT = 3"), "other": ast.parse("Part = int\n_Own = str\nLIMIT = 4")}
    assert defined_twice(trees) == {"Part": ["one", "other"]}
