# SPDX-License-Identifier: Apache-2.0
"""Predictions: against sums done by hand, and against each other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from farskip_compile.costs import collective_seconds, load_profile
from farskip_compile.errors import ConfigError
from farskip_compile.measure.simulate import Prediction, predict, predict_each
from farskip_compile.measure.simulate.results import ORDERS, prediction_json
from farskip_compile.passes.schedule.program import check_order
from farskip_compile.passes.schedule.timeline import simulate
from tests.simulate.tiny import predicted, scenario

pytest.importorskip("transformers")

pytestmark = pytest.mark.xdist_group("predictions")  # one worker, so that each model is predicted once

CASES: list[dict[str, Any]] = [
    {},
    {"name": "llama4-scout"},
    {"name": "qwen3-30b-a3b"},
    {"products": "float8"},
    {"tp": 1},
    {"tp": 2, "exchange": "all-to-all"},
    {"tp": 1, "exchange": "all-gather"},
    {"tp": 2, "exchange": "all-gather", "phase": "decode"},
    {"tp": 1, "phase": "train", "prompt": 64},
    {"phase": "decode"},
    {"skew": 1.0, "tp": 1},
    {"interference": 0.0},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_orders(case: dict[str, Any]) -> None:
    found = predicted(**case)
    for name in ORDERS:
        step = getattr(found, name)
        for phase in step.phases:
            check_order(phase.program, phase.order)
            assert simulate(phase.program, phase.order) == phase.timeline
        assert step.seconds == pytest.approx(step.compute + step.exposed)
        assert 0 <= step.exposed <= step.communication + 1e-12
    assert found.written.exposed == pytest.approx(found.written.communication, rel=0.02), "awaited where it is launched"
    assert found.farskip.seconds <= found.written.seconds * (1 + 1e-9)
    assert found.farskip.seconds <= found.published.seconds * (1 + 1e-9), "never behind AMD's placement"
    assert found.scheduled.seconds <= found.written.seconds * (1 + 1e-9)
    assert "verified" in found.rewired


def test_communication_by_hand() -> None:
    """Of 4 layers, each reduces [8 * 512, 512] in bfloat16 behind its attention and behind its feed-forward."""
    profile = load_profile("mi300x")
    one = collective_seconds("all_reduce", 8 * 512 * 512 * 2, 4, profile)
    found = predicted()
    assert found.written.communication == pytest.approx(8 * one)
    assert found.farskip.communication == pytest.approx(8 * one), "attention and shared experts share a reduction"


def test_pieces_by_hand() -> None:
    """Each exchange of rows twice with half of them; counts as before."""
    profile = load_profile("mi300x")
    half = collective_seconds("all_to_all", 2 * 512 * 4 * 512, 4, profile)
    counts = collective_seconds("all_to_all", 32 * 8, 4, profile)
    found = predicted(tp=1, pieces=2)
    assert list(found.also) == ["overlapped, 2 pieces", "FarSkip, 2 pieces"]
    for step in found.also.values():
        assert step.communication == pytest.approx(3 * (4 * half + counts))
    whole = predicted(tp=1)
    assert found.written == whole.written, "what is in one piece stays as it is"
    assert found.farskip.seconds == whole.farskip.seconds


def test_other_connectivities() -> None:
    found = predicted(tp=1, also=("lag2", "ladder"))
    assert list(found.also) == ["lag2", "ladder"]
    for step in found.also.values():
        assert step.communication == pytest.approx(found.written.communication)
        assert step.exposed < found.written.exposed
    assert prediction_json(found)["orders"].keys() == {*ORDERS, "lag2", "ladder"}


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"pieces": 2}, "cuts an all-to-all, not an all-reduce"),
        ({"pieces": 0, "tp": 1}, "pieces=0 must be a whole number of at least 1"),
        ({"pieces": 3, "tp": 1}, "can't be cut among 12 ranks"),
        ({"also": ("full",)}, "also='full' is unknown, or predicted anyway"),
    ],
)
def test_impossible_pieces_are_refused(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        predict(scenario(**wish))


def test_dispatch_by_hand() -> None:
    """3 layers with experts: 2 sequences on each of 4 ranks, top 4; dispatch, combine, and counts of experts."""
    profile = load_profile("mi300x")
    rows = collective_seconds("all_to_all", 2 * 512 * 4 * 512 * 2, 4, profile)
    counts = collective_seconds("all_to_all", 32 * 8, 4, profile)
    assert predicted(tp=1).written.communication == pytest.approx(3 * (2 * rows + counts))


def experts_seconds(found: Prediction) -> float:
    """Of the products of the routed experts, without what starting their kernels takes."""
    (phase,) = found.written.phases
    tasks = [task for task in phase.program.tasks if "grouped_mm" in task.name]
    return sum(task.seconds - load_profile("mi300x").launch_seconds for task in tasks)


def test_products_by_hand() -> None:
    """FLOPs of a rank, as the architecture has them."""
    profile = load_profile("mi300x")
    assert profile.curves is not None
    assert profile.curves.grouped_matmul is not None
    curve = profile.curves.grouped_matmul["bfloat16"]
    bandwidth = profile.memory_bandwidth * profile.efficiency.memory
    rows = 8 * 512 * 4 // 4  # tokens, of which each chooses 4 experts, on 4 ranks
    layer = 0.0
    for inner, columns in ((512, 2 * 128), (128, 512)):  # gate and up, down; 8 of 32 experts
        moved = 2 * (rows * inner + 8 * inner * columns + rows * columns)
        rate = curve.at(rows / 8, inner, columns)
        layer += max(2 * rows * inner * columns / rate, moved / bandwidth)
    assert experts_seconds(predicted("qwen3-30b-a3b")) == pytest.approx(3 * layer, rel=1e-3)


def test_half_the_bytes_and_twice_the_rate() -> None:
    assert experts_seconds(predicted(products="float8")) < 0.7 * experts_seconds(predicted())
    assert predicted(products="float8").written.compute < predicted().written.compute
    assert predicted(products="float8").written.communication == predicted().written.communication


def test_skew_makes_the_fullest_rank_slower() -> None:
    balanced, skewed = predicted(tp=1), predicted(tp=1, skew=1.0)
    assert skewed.imbalance > 1.2
    assert skewed.written.compute > balanced.written.compute
    assert skewed.written.communication > balanced.written.communication


def test_interference_slows_what_runs_beside_a_collective() -> None:
    none, much = predicted(interference=0.0), predicted(interference=0.5)
    assert none.farskip.compute < predicted().farskip.compute < much.farskip.compute, "by the profile 0.22"
    assert much.written.compute == pytest.approx(none.written.compute, rel=0.02)


def test_several_from_one_capture() -> None:
    """They are what each is alone, and a factor is what a measured step says."""
    plain, slower = predicted(), predicted(slower=3.0)
    assert slower.slower == 3.0
    assert slower.written.compute == pytest.approx(3 * plain.written.compute)
    assert predicted(measured=slower.written.seconds).slower == pytest.approx(3.0, rel=0.01)
    other = {"device": "h100", "interference": 0.0}
    together, alone = predicted(**other), predict(scenario(**other))
    assert together == alone
    assert alone.written.seconds != plain.written.seconds
    assert predict_each([]) == []
    with pytest.raises(ConfigError, match="only device, measured, slower, interference may differ"):
        predict_each([scenario(), scenario(prompt=256)])


def test_it_starts_from_what_was_measured() -> None:
    plain = predicted()
    seconds = predicted(slower=3.0).written.seconds
    found: Prediction = predicted(measured=seconds)
    assert found.written.seconds == pytest.approx(seconds, rel=0.01)
    assert found.slower == pytest.approx((seconds - plain.written.exposed) / plain.written.compute)
    assert 1 < found.speedup < plain.speedup, "communication is a smaller part"
    with pytest.raises(ConfigError, match="the collectives alone take"):
        predict(scenario(measured=plain.written.communication / 2))


def test_equal_scenarios_give_equal_predictions() -> None:
    """One of several from a capture, and one alone."""
    again = predict(scenario())
    assert again == predicted()
    assert again.took != predicted().took


def test_json() -> None:
    found = json.loads(json.dumps(prediction_json(predicted())))
    assert found["scenario"]["model"] == "deepseek-v3"
    assert found["speedup"]["farskip"] == predicted().speedup
    rows = found["orders"]["farskip"]["phases"]["inference"]["collectives"]
    assert sum(row["count"] for row in rows) == 8
    assert sum(row["exposed"] for row in rows) == pytest.approx(found["orders"]["farskip"]["exposed"])
