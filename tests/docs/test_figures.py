# SPDX-License-Identifier: Apache-2.0
"""The figures of README.md and docs/price.md are those of the recorded runs, computed here from what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.docs.blocks import ROOT

PHASES = ("prefill", "training", "decode")
VARIANTS = ("inductor passes", "none, pieces", "full", "full, pieces")
"""The columns of the README."""


@cache
def record(name: str) -> Mapping[str, Any]:
    return json.loads((ROOT / "docs" / name).read_text())


def table(page: Path, first: str) -> dict[str, list[str]]:
    """Rows of the table whose heading begins with `first`, by their first cell."""
    lines = page.read_text(encoding="utf-8").splitlines()
    (start,) = (at for at, line in enumerate(lines) if line.startswith(f"| {first}"))
    rows: dict[str, list[str]] = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name if name not in rows else f"{name} again"] = cells
    return rows


COMPILES = {
    "this backend, whole graph": ("whole graph", "cold"),
    "this backend, layer by layer (`farskip_compile.regional`)": ("regional", "cold"),
    "plain Inductor, layer by layer": ("plain, by layer", "cold"),
    "from a warm cache: whole graph": ("whole graph", "warm"),
    "from a warm cache: layer by layer": ("regional", "warm"),
}
"""Rows of docs/price.md, and what was measured."""
HEALED = {
    "unhealed": "unhealed",
    "folded": "folded",
    "healed, the paper's recipe": "paper",
    "healed, the best recipe": "best",
}
README = table(ROOT / "README.md", "| Inductor's own passes")
PRICE = ROOT / "docs" / "price.md"


def cells() -> dict[str, Mapping[str, Any]]:
    return {cell["cell"]: cell for cell in record("benchmarks.json")["cells"]}


def speed_up(cell: Mapping[str, Any], variant: str) -> float:
    """Median over repetitions, of the slowest rank's times."""
    plain, other = (
        list(map(max, zip(*(rank[name] for rank in cell["raw"]), strict=True))) for name in ("plain", variant)
    )
    return median(a / b for a, b in zip(plain, other, strict=True))


def more_memory(cell: Mapping[str, Any], variant: str, than: str = "plain") -> float:
    """Per cent, parameters and caches included."""
    one, other = (cell["peak_bytes"][name] + cell["resident_bytes"] for name in (variant, than))
    return 100 * (one / other - 1)


@pytest.mark.parametrize("phase", PHASES)
def test_gains(phase: str) -> None:
    cell = cells()[f"deepseek_v3/{phase}/balanced/2/1"]
    assert README[phase] == [f"{speed_up(cell, variant):.2f} x" for variant in VARIANTS]


def test_memory_of_a_step() -> None:
    three = [cells()[f"deepseek_v3/{phase}/balanced/2/1"] for phase in PHASES]
    (found,) = (row for name, row in README.items() if name.startswith("memory"))
    assert found == [f"{max(more_memory(cell, variant) for cell in three):+.1f} %" for variant in VARIANTS]


def test_memory_of_all_cells() -> None:
    found = list(table(PRICE, "| all memory of a step, over").values())
    pairs = (("none", "plain"), ("full", "plain"), ("full", "hand-written"), ("full, pieces", "plain"))
    counts = []
    for row, (variant, than) in zip(found, pairs, strict=True):
        more = [
            more_memory(cell, variant, than) for cell in cells().values() if {variant, than} <= {*cell["peak_bytes"]}
        ]
        assert row[1:] == [f"{one:+.1f} %" for one in (min(more), median(more), max(more))]
        counts.append(len(more))
    assert f"all {counts[0]} cells (in pieces: {counts[-1]})" in PRICE.read_text()
    assert counts[0] == counts[1] == counts[2]


def test_memory_of_shards() -> None:
    held = {
        (one["form"], one["checkpointed"]): one["peak"] + one["parameters"]
        for one in record("regional.json")["sharded"]
    }
    more, less = (100 * (held["full, by layer", c] / held["plain, by layer", c] - 1) for c in (False, True))
    assert f"`full` held {more:.1f} % more than plain Inductor, and {-less:.1f} % less with" in flat(PRICE)


def total(form: str, cache_is: str, phase: str) -> str:
    """Seconds of compiling, with what Inductor prepares once."""
    (one,) = (
        one[cache_is]
        for one in record("regional.json")["compiles"]
        if (one["form"], one["phase"], one["layers"]) == (form, phase, 61)
    )
    seconds = one["prepared"] + one["model"]
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def test_compile_time() -> None:
    found = table(PRICE, "cold, 61 layers")
    assert found == {name: [total(*one, phase) for phase in PHASES[:2]] for name, one in COMPILES.items()}
    whole, layers, plain = (row[0] for row in list(found.values())[:3])
    said = f"take {whole} as one graph, {layers} layer by layer, and {plain} layer by layer with plain Inductor"
    assert said in flat(ROOT / "README.md")


def test_healing_of_larger_models() -> None:
    found = table(PRICE, "row | DeepSeek-V3 style")
    rows = {(one["row"]["model"], one["row"]["name"]): one for one in record("distillation_larger.json")["rows"]}
    for text, name in HEALED.items():
        shown = []
        for model in ("deepseek_v3", "qwen3_moe"):
            asked = (f"{name}-full@0", "unhealed-full@0", "teacher@0")
            judged, unhealed, teacher = (rows[model, one]["judged"]["held_out"] for one in asked)
            repaired = 100 * (1 - judged["kl"] / unhealed["kl"])
            above = 100 * (judged["loss"] / teacher["loss"] - 1)
            shown += [f"{judged['kl']:.4f}", f"{repaired:.1f} %" if name != "unhealed" else "", f"{above:+.2f} %"]
        assert found[text] == shown


def flat(page: Path) -> str:
    """A page whose lines end nowhere."""
    return re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
