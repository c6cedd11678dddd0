# SPDX-License-Identifier: Apache-2.0
"""The demo's own machinery, small: its cases on two ranks, and the launcher with a rank that fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from farskip_compile.cli import app
from farskip_compile.demo import transformers_case
from farskip_compile.demo.launch import Follower, run_on_ranks
from farskip_compile.demo.overlap import OVERLAP, VARIANTS, compared, run_overlap
from farskip_compile.demo.ranks import DROPLESS, PADDED, PREFILL, TRAINING, check, run_case
from farskip_compile.demo.render import page
from farskip_compile.demo.results import Demo, DemoCase, DemoComparison, over_ranks
from farskip_compile.models import FarSkipForm, build
from tests.cli.terminals import FARSKIP, in_terminal
from tests.distributed.ranks import run_ranks
from tests.economy import scalar_kernels

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
        table = together.report.table
        assert table.collectives(table.rows[1]) == ("all_to_all_single",) * exchanges


def test_a_failing_rank_costs_only_the_cases_behind_it():
    steps, done = [], []
    works = replace(PADDED, layers=("moe",), phases=(PREFILL,))
    run_on_ranks([works, replace(works, layers=(), title="impossible")], 2, steps.append, done.append)
    assert [case.title for case in done] == [works.title, "impossible"]
    assert done[0].passed
    assert not done[1].passed
    assert "failed: ConfigError: layers must name" in done[1].problem
    assert steps[0] == "starting 2 ranks"


def send_half(pipes):
    """A process that sends a text and a result, and dies in the middle of the next."""
    pipes[0].send("first: prefill")
    pipes[0].send(DemoCase("first", ""))
    os.write(pipes[0].fileno(), b"\0\0\0\x10half")
    os._exit(1)


def test_a_rank_that_dies_while_it_sends_does_not_keep_the_reader():
    steps, done = [], []
    follower = Follower(1, steps.append, done.append)
    with follower.following():
        process = multiprocessing.get_context("forkserver").Process(target=send_half, args=(follower.writers,))
        process.start()
        process.join()
    assert (steps, [case.title for case in done], follower.finished) == (["first: prefill"], ["first"], 1)


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


def overlap_on_two_ranks(rank: int, world_size: int, folder: str):
    small = replace(OVERLAP, layers=("moe",), tokens=16, overrides={})
    with scalar_kernels():
        return run_overlap(small, dist.group.WORLD, folder)


def test_variants_side_by_side(tmp_path):
    seen = run_ranks(overlap_on_two_ranks, 2, str(tmp_path), timeout=300)
    found = compared(seen)
    assert found.passed, found.to_json()
    assert [variant.name for variant in found.variants] == list(VARIANTS)
    for variant, path in zip(found.variants, found.write_traces(tmp_path), strict=True):
        assert json.loads(path.read_text())["farskipRanks"] == [0, 1]
        again = CliRunner().invoke(app, ["overlap", str(path), "--json"])
        assert again.exit_code == 0, again.output
        assert json.loads(again.stdout)["total"] == variant.report.total.to_json(), "what the page shows"
        assert bool(json.loads(again.stdout)["estimates"]) == (variant.predicted is not None)
        assert [len(rank.collectives) for rank in variant.report.ranks] == [2, 2]  # a dispatch and a combine
        assert 0 <= variant.exposed_ns <= variant.communication_ns
    plain, *ours = found.variants
    assert plain.predicted is None
    assert all(variant.predicted_exposed_ns is not None for variant in ours)
    section = page(Demo((), 1.0, overlap=found))
    assert section.count("<title>all_to_all_single") + section.count("tl-picture") > len(VARIANTS)
    assert "loopback" in section
    assert "gloo&#39;s threads copy them" in section, "why predicted and measured differ"
    assert "the profile cpu-gloo" in section
    assert "CPU, 2 ranks, prefill of 16 tokens on each, float32" in section
    assert "src=" not in section
    wrong = replace(found, variants=(replace(plain, difference=0.5), *ours))
    assert not wrong.passed
    (tmp_path / "broken.json").write_text("no trace")
    broken = replace(seen[0], variants=(replace(seen[0].variants[0], traces=(str(tmp_path / "broken.json"),)),))
    assert compared([broken]).problem


def test_a_failed_comparison_fails_the_demo():
    assert not DemoComparison("title", "about", 2, problem="rank 0 failed").passed


def test_ctrl_c_stops_the_ranks_and_is_one_line(tmp_path):
    found = in_terminal([*FARSKIP, "demo", "--out", str(tmp_path)], stop_at="prefill")
    assert found.status == 130, found.text
    assert [line for line in found.text.splitlines() if line.strip()][-1] == "Stopped."
    assert "Traceback" not in found.text


def test_ctrl_c_behind_the_launcher_is_a_keyboard_interrupt():
    """The launcher keeps the signals that it took."""
    before = signal.getsignal(signal.SIGINT)
    run_on_ranks([replace(PADDED, layers=(), title="impossible")], 1, lambda step: None, lambda case: None)
    assert signal.getsignal(signal.SIGINT) is before
