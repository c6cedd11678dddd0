# SPDX-License-Identifier: Apache-2.0
"""The ablation of the scheduler's search: each part is left out, and the table says what that costs."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from overlap_bench.ablations import search_ablation as ablation
from schedule_ablation import PARTS, Case, read_cases, row, searched, write_cases

from farskip_compile.errors import ConfigError
from farskip_compile.passes.schedule import list_scheduler, search
from tests.passes.schedule.sample_programs import far_skip_layers, scarce_memory


def case(group: str = "kernels", *, scarce: bool = False) -> Case:
    program = scarce_memory() if scarce else far_skip_layers(3, rewired=True)
    return Case("cell", group, program, search.MemoryLimits(0.05), None, ())


def test_a_part_is_left_out_of_one_search_alone() -> None:
    """Where memory is scarce, one heuristic hides less than all; afterwards everything is as before."""
    scarce = case(scarce=True)
    whole = searched(scarce)
    before = search.make_order, search.HEURISTICS, list_scheduler.CANDIDATES
    found = {part: row(part, [scarce], [whole])["time"]["kernels"] for part in PARTS}
    assert max(worst for worst, _ in found.values()) > 0
    assert (search.make_order, search.HEURISTICS, list_scheduler.CANDIDATES) == before
    assert searched(scarce)["time"] == whole["time"]


def test_captured_programs_are_kept_as_they_are(tmp_path: Path) -> None:
    file, cases = (
        tmp_path / "programs",
        [case(), case("graphs", scarce=True), replace(case(), limits=None, known=((1,),))],
    )
    write_cases(file, cases)
    assert read_cases(file) == cases
    assert searched(read_cases(file)[1])["time"] == searched(cases[1])["time"]
    file.write_bytes(file.read_bytes().replace(b"cell", b"bell", 1))
    with pytest.raises(ConfigError, match="damaged"):
        read_cases(file)
    file.write_bytes(pickle.dumps(cases))
    with pytest.raises(ConfigError, match="can't read the captured programs"):
        read_cases(file)


def test_the_section_has_a_row_for_each_part(tmp_path: Path) -> None:
    cases = [case(), case("graphs")]
    whole = [searched(one) for one in cases]
    rows = [row(part, cases, whole) for part in PARTS]
    data = {
        "facts": {"machine": "a machine", "versions": "torch 9", "command": "python x"},
        "programs": {"kernels": ["cell"], "graphs": ["cell"], "full size": []},
        "rows": rows,
        "removed": ["a part"],
    }
    path = tmp_path / "schedule_ablation.json"
    assert ablation(path) == ""
    path.write_text(json.dumps(data))
    text = ablation(path)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(PARTS)
    assert {line.count("|") for line in lines} == {7}
    for part in ("a machine", "torch 9", "`python x`", "`cell`", "- a part", "| no coarsening | +0.0 % (+0.0 %) |"):
        assert part in text
