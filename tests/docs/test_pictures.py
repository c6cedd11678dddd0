# SPDX-License-Identifier: Apache-2.0
"""The pictures of docs/concepts.md are what their script draws, and show what the compiler does."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree
from typing import Any

import pytest
import torch

import farskip_compile
from farskip_compile.models import build
from tests.docs.blocks import ROOT

FOLDER = ROOT / "docs" / "pictures"
DRAWN: dict[str, Any] = runpy.run_path(str(FOLDER / "draw.py"), run_name="drawn")


def test_the_files_are_what_is_drawn() -> None:
    assert sorted(DRAWN["PICTURES"]) == sorted(path.name for path in FOLDER.glob("*.svg"))
    for name, draw in DRAWN["PICTURES"].items():
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert text == draw(), f"{name}: run docs/pictures/draw.py"
        xml.etree.ElementTree.fromstring(text)


@pytest.mark.parametrize("connectivity", DRAWN["RULES"])
def test_the_rules_are_those_of_the_compiler(connectivity: str) -> None:
    torch.compiler.reset()
    model = build("deepseek_v3", layers=("dense", "moe", "moe"))
    options = {"connectivity": connectivity, "inner": "eager"}
    torch.compile(model, backend="farskip", fullgraph=True, options=options)(torch.arange(8).view(1, 8))
    found = farskip_compile.reports().compiles[-1].left_out
    drawn = {row: set(terms) for row, terms in DRAWN["RULES"][connectivity].items()}
    assert {row: set(terms) for row, terms in found.items() if row in DRAWN["ROWS"]} == drawn
