"""The demo's own machinery, small: its cases on two ranks, and the launcher with a rank that fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from farskip_compile.demo import transformers_case
from farskip_compile.demo_checks import PREFILL, TRAINING, check
from farskip_compile.demo_launch import run_on_ranks
from farskip_compile.demo_ranks import DROPLESS, PADDED, run_case
from farskip_compile.demo_results import over_ranks
from farskip_compile.models import FarSkipForm, build
from tests.distributed.ranks import run_ranks

SMALL = [
    replace(PADDED, layers=("moe", "moe"), phases=(PREFILL,)),
    replace(DROPLESS, layers=("moe", "moe"), phases=(TRAINING,)),
]


def two_ranks(rank: int, world_size: int):
    return [run_case(case, dist.group.WORLD) for case in SMALL]


def test_cases_on_two_ranks():
    per_rank = run_ranks(two_ranks, 2)
    for case, *seen in zip(SMALL, *per_rank, strict=True):
        together = over_ranks(seen)
        assert together.passed, together.to_json()
        assert tuple(found.phase for found in together.checks) == case.phases
        assert all(found.outputs_equal for found in together.checks)
        exchanges = 2 if case.ep_mode == "padded" else 3
        assert together.report.rows[1].collectives == ("all_to_all_single",) * exchanges


def test_a_failing_rank_costs_only_the_cases_behind_it():
    steps, done = [], []
    works = replace(PADDED, layers=("moe",), phases=(PREFILL,))
    run_on_ranks([works, replace(works, layers=(), title="impossible")], 2, steps.append, done.append)
    assert [case.title for case in done] == [works.title, "impossible"]
    assert done[0].passed
    assert not done[1].passed
    assert "failed: ConfigError: layers must name" in done[1].problem
    assert steps[0] == "starting 2 ranks"


def test_a_wrong_form_fails_the_check():
    model = build("mixtral", layers=("moe", "moe"), dtype=torch.float64)
    wrong = FarSkipForm(model, connectivity="attention")
    _, checks = check(model, wrong, torch.arange(8).view(1, 8), "eager", (PREFILL, TRAINING))
    assert not any(found.passed for found in checks)


def test_transformers_case():
    pytest.importorskip("transformers")
    case = transformers_case(layers=2)
    assert case.passed, case.to_json()


def test_without_transformers_the_case_is_skipped(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    case = transformers_case()
    assert case.skipped
    assert "pip install" in case.problem
