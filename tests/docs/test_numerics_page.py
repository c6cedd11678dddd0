# SPDX-License-Identifier: Apache-2.0
"""docs/numerics.md: the test of each row is there, compares bits if the row says so, and allows what the row says.

Bits: `torch.equal`, or figures that are asserted to be equal (the losses of a trainer, verdicts of the zoo).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.docs.blocks import ROOT

PAGE = ROOT / "docs" / "numerics.md"
HELD = ("outputs", "gradients", "held to")
"""Headings of the columns that say how closely."""


class Row(NamedTuple):
    what: str
    held: str
    file: str
    test: str


def rows() -> Iterator[Row]:
    heads: list[str] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = cells
        elif named := re.fullmatch(r"`(tests/[\w/]+\.py)::(\w+)`", cells[-1]):
            row = dict(zip(heads, cells, strict=True))
            held = " ".join(row[head] for head in HELD if head in row)
            yield Row(row["what"], held, named[1], named[2])


ROWS = list(rows())


def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def with_helpers(path: str) -> Iterator[ast.Module]:
    """A file of tests, and what it imports from other tests or from the comparison with vLLM."""
    file = tree(path)
    yield file
    for node in ast.walk(file):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("tests.", "farskip_compile.vllm")):
            path = str(node.module).replace(".", "/")
            helpers = [f"{path}.py", *(f"{path}/{alias.name}.py" for alias in node.names)]
            yield from (tree(helper) for helper in helpers if (ROOT / helper).exists())


def compares_bits(nodes: list[ast.AST]) -> bool:
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
    return bool(names & {"equal", "EQUAL"})


def asserts_equal_figures(file: ast.Module, test: str) -> bool:
    """`assert none == plain`, of two names."""
    (function,) = (node for node in ast.walk(file) if isinstance(node, ast.FunctionDef) and node.name == test)
    tests = [node.test for node in ast.walk(function) if isinstance(node, ast.Assert)]
    return any(
        isinstance(one, ast.Compare)
        and isinstance(one.ops[0], ast.Eq)
        and all(isinstance(side, ast.Name) for side in (one.left, *one.comparators))
        for one in tests
    )


def test_each_table_names_a_test_in_each_row() -> None:
    text = PAGE.read_text(encoding="utf-8").split("## What is tested")[1].split("## Where bits end")[0]
    written = [
        line for line in text.splitlines() if line.startswith("|") and not re.match(r"\| (what|---)|\|---", line)
    ]
    assert len(written) == len(ROWS) > 45


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.test}: {row.what}")
def test_the_row_is_what_its_test_holds(row: Row) -> None:
    file = tree(row.file)
    assert row.test in {node.name for node in ast.walk(file) if isinstance(node, ast.FunctionDef)}
    nodes = [node for module in with_helpers(row.file) for node in ast.walk(module)]
    if "bits" in row.held:
        assert compares_bits(nodes) or asserts_equal_figures(file, row.test)
    allowed = {float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?e-\d+", row.held.split("seen:")[0])}
    constants = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, float)}
    assert allowed <= constants, "another tolerance"
    assert allowed or "bits" in row.held
