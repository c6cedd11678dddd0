# SPDX-License-Identifier: Apache-2.0
"""Passes and the core stay short, and the root of the package stays a short list."""

from __future__ import annotations

import ast

from tests.structure.sources import PLACES, functions, modules

CORE = ("passes", "verify", "compiler")
LONGEST = 60
ROOT_FILES = 6


def test_functions_fit_on_a_screen() -> None:
    long = []
    for name, file in modules().items():
        if name.split(".")[1:2] and name.split(".")[1] in CORE:
            for function, node in functions(ast.parse(file.read_text())):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST:
                    long.append((name, function, lines))
    assert long == []


def test_the_root_holds_few_files() -> None:
    names = sorted(file.name for file in PLACES["farskip_compile"].glob("*.py"))
    assert len(names) <= ROOT_FILES, names
