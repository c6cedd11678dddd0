# SPDX-License-Identifier: Apache-2.0
"""docs/handwritten.md: its programs run, and the places that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from farskip_compile import declare
from tests.handwritten.decoder import Decoder
from tests.handwritten.test_adds import TwoBranches

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "handwritten.md").read_text()


def test_its_programs_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declare, "_declared", {})
    declaring, compiling, ends, collectives = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(declaring, {})
    assert len(declare.all_declared({})) == 2
    exec("import farskip_compile\n" + collectives, {})
    assert [fact.wait for fact in declare.all_declared({}) if fact.wait] == ["mylib::combined", "mylib::dispatched"]
    for program in (compiling, ends):
        exec(program, {"torch": torch, "model": Decoder(TwoBranches)})


def test_its_places_exist() -> None:
    for place in re.findall(r"`((?:passes|farskip_compile|tests)/[\w/.]*)`", PAGE):
        assert (ROOT / place).exists(), place
