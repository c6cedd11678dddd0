# SPDX-License-Identifier: Apache-2.0
"""docs/options.md lists each option of the backend once, with its default, and every pass that can be left out."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields

from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.passes.contract import PASSES, why_indispensable
from tests.docs.blocks import ROOT

TEXT = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| .* \|$", TEXT, re.MULTILINE))


def test_each_option_is_listed_once() -> None:
    names = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert sorted(names) == sorted(field.name for field in fields(FarSkipConfig))


def test_defaults_are_those_of_the_code() -> None:
    for field in fields(FarSkipConfig):
        if field.default is MISSING or not (shown := re.search(r"`([^`]+)` \(default\)", ROWS[field.name])):
            continue
        value = shown[1].strip('"')
        assert value == ("full" if field.name == "connectivity" else str(field.default)), field.name
    assert "5 GB (default)" in ROWS["in_flight_bytes"]
    assert FarSkipConfig().in_flight_bytes == 5_000_000_000


def test_passes_that_can_be_left_out() -> None:
    (row,) = (line for line in TEXT.splitlines() if line.startswith("| `disable_passes` |"))
    named = set(re.findall(r"`(\w+)`", row.split("|")[3]))
    assert named == {one.name for one in PASSES if not why_indispensable(one.name)}
