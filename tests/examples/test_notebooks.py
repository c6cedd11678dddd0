# SPDX-License-Identifier: Apache-2.0
"""The notebooks of examples/ hold the outputs of a whole run, and a new run gives the same."""

from __future__ import annotations

import copy
from pathlib import Path

import nbformat
import pytest

from tests.examples.notebooks import NOTEBOOKS, alike, differences, rerun

LARGEST = 300_000
"""Bytes: a notebook is read in a browser, and kept by git in each of its versions."""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["cost_and_healing", "is_it_worth_it"]


@each
def test_outputs_are_those_of_one_whole_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert [one for one in outputs if one.output_type == "error" or one.get("name") == "stderr"] == []
    drawing = [cell for cell in code if "subplots(" in cell.source or "Image(" in cell.source]
    assert drawing
    assert [cell.id for cell in drawing if not any("image/png" in one.get("data", {}) for one in cell.outputs)] == []
    assert path.stat().st_size < LARGEST
    assert str(Path.home()) not in path.read_text()


@each
def test_a_new_run_gives_the_same(path: Path) -> None:
    assert list(differences(nbformat.read(path, as_version=4), rerun(path))) == []


def test_what_counts_as_the_same() -> None:
    assert alike("a  1.00 b\n2", "a 1.04 b 2", 0.05)
    assert not alike("a 1.00 b", "a 1.06 b", 0.05)
    assert not alike("a 1.00 b", "a 1.01 b", 0.0)
    assert not alike("a 1 b", "a 1 c", 1.0)
    assert not alike("a 1 b", "a 1 b 2", 1.0)


@pytest.mark.parametrize(("change", "noticed"), [("text", 1), ("tag", 0), ("kind", 1), ("stderr", 0)])
def test_what_is_compared(change: str, noticed: int) -> None:
    cell = nbformat.v4.new_code_cell("f()", outputs=[nbformat.v4.new_output("stream", text="1 word")])
    kept = nbformat.v4.new_notebook(cells=[cell])
    found = copy.deepcopy(kept)
    match change:
        case "text" | "tag":
            found.cells[0].outputs[0].text = "2 words"
            kept.cells[0].metadata["tags"] = ["varies"] * (change == "tag")
        case "kind":
            found.cells[0].outputs.clear()
        case "stderr":
            found.cells[0].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="a warning"))
    assert len(list(differences(kept, found))) == noticed
