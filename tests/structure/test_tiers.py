# SPDX-License-Identifier: Apache-2.0
"""The tables of tiers name tests that exist."""

from __future__ import annotations

import re

import pytest

from tests.economy import examples
from tests.structure.sources import ROOT
from tests.tiers import DEEP, PARAMETERS, QUICK, SHOWN_BY, WHOLE, is_deep, place

SHOWS = [f"tests/{test}" for test in SHOWN_BY.values()]


@pytest.mark.parametrize("start", [*WHOLE, *DEEP, *QUICK, *SHOWS])
def test_what_is_listed_is_there(start: str) -> None:
    path, _, name = start.partition("[")[0].partition("::")
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()
    assert not name or re.search(rf"^def {name}", (ROOT / path).read_text(), re.MULTILINE)


def test_what_breaks_most_is_quick() -> None:
    quick = (
        "tests/passes/residual/test_stream.py",
        "tests/properties/test_table.py",
        "tests/test_backend.py",
        "tests/models/test_transformers.py",
        "tests/distributed/test_rewire_ranks.py::test_two_ranks_bit_equal[tp]",
        "tests/structure/test_tiers.py",
        *QUICK,
    )
    assert [one for one in quick if place(one) is not None] == []
    assert place("tests/faults/test_rank_faults.py::test_x") is not None


def test_what_is_deep_is_run_by_a_change_with_other_parameters_or_elsewhere() -> None:
    assert is_deep("tests/distributed/test_expert_parallel_ranks.py::test_equal_to_theirs_bit_for_bit[4-2]")
    assert not is_deep("tests/distributed/test_expert_parallel_ranks.py::test_equal_to_theirs_bit_for_bit[2-1]")
    assert [test for tests in PARAMETERS.values() for test in tests if "[" not in test] == []
    assert [test for test in SHOWS if is_deep(test)] == []


def test_a_release_is_held_to_all_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FARSKIP_TESTS", raising=False)
    assert [examples(number) for number in (1, 10, 25)] == [1, 5, 13]
    makefile = (ROOT / "Makefile").read_text()
    ((name, value),) = re.findall(r"^test-deep: export (\w+) := (\w+)$", makefile, re.MULTILINE)
    monkeypatch.setenv(name, value)
    assert examples(25) == 25
