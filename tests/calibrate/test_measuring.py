# SPDX-License-Identifier: Apache-2.0
"""Measuring with a clock that is told what to say: repetitions, medians, grids, and the profile made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from rich.console import Console

from farskip_compile.costs import Curve, collective_seconds, load_profile
from farskip_compile.costs.collectives import Sample
from farskip_compile.costs.profile import COLLECTIVE_KINDS
from farskip_compile.errors import ConfigError
from farskip_compile.measure.calibrate import Calibration, calibrate, calibrate_link, calibration_text, main
from farskip_compile.measure.calibrate.collectives import monotone
from farskip_compile.measure.calibrate.findings import (
    LinkFindings,
    MeasuredPoint,
    MemoryFigures,
    Uneven,
    with_compute,
    with_link,
)
from farskip_compile.measure.calibrate.kernels import SOFTMAX_OPS, ProductBench, softmax_rate
from farskip_compile.measure.calibrate.stopwatch import (
    MOST,
    QUICK_SECONDS,
    Budget,
    Grids,
    Pool,
    Stopwatch,
    Times,
    grids,
    rotating,
)

CPU = torch.device("cpu")
TINY = Grids(
    matmul=((1, 8), (16, 32), (4, 64)),
    attention=((1, 16), (16, 32), (8,)),
    grouped=((4, 16), (16,), (16,)),
    heads=2,
    groups=2,
    memory=(2**12, 2**14),
    strided=(2**14,),
    fresh=(2**16,),
    messages=(2**8, 2**12, 2**16),
)


class Clock:
    """Every look at it takes a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-3
        return self.now


def test_the_budget_decides_how_often_and_is_shared_out() -> None:
    clock = Clock()
    budget = Budget(1.0, 4, clock)
    assert budget.repetitions(0.02) == 12
    clock.now += 0.5
    assert budget.repetitions(0.02) == 8  # a third of the half that is left
    assert budget.repetitions(1e-6) == MOST
    clock.now += 10
    assert budget.repetitions(0.02) == 3  # never fewer


def test_times_are_of_the_call_alone_and_the_first_call_is_not_among_them() -> None:
    clock, calls, prepared = Clock(), [], []

    def call() -> None:
        calls.append(clock.now)
        clock.now += 0.25 if len(calls) == 1 else 0.01

    def before() -> None:
        prepared.append(clock.now)
        clock.now += 7.0

    times = Stopwatch(CPU, clock).time(call, Budget(1e6, 1, clock), before=before)
    assert times.seconds == pytest.approx([0.011] * MOST)
    assert len(calls) == MOST + 2
    assert len(prepared) == MOST + 1


def test_median_and_spread() -> None:
    times = Times((1.0, 2.0, 3.0, 4.0, 100.0))
    assert times.median == 3.0
    assert times.spread == pytest.approx(2 / 3)
    assert Times((5.0,)).spread == 0.0


def test_operands_of_one_call_lie_apart_and_calls_rotate() -> None:
    pool = Pool(CPU, torch.float32, 1024)
    for _ in range(5):
        first, second = pool.take((4, 16), (100,))
        assert first.data_ptr() + first.nbytes <= second.data_ptr()
    (large,) = pool.take((1000,))
    assert large.numel() == 1000
    take = rotating(lambda: pool.take((8,)), 3)
    places = [take()[0].data_ptr() for _ in range(6)]
    assert places[:3] == places[3:]
    assert len(set(places)) == 3


def test_products_are_measured_on_the_whole_grid() -> None:
    products = ProductBench(Stopwatch(CPU, Clock()), torch.float32, TINY, launch_seconds=0.0)
    curves = products.measure(0.01)
    assert list(curves) == ["matmul", "grouped_matmul", "attention", "attention_backward"]
    assert curves["matmul"].axes == TINY.matmul
    seconds = 1e-3  # whatever the shape, by this clock
    for shape in product(*TINY.matmul):
        assert curves["matmul"].at(*shape) == pytest.approx(2 * shape[0] * shape[1] * shape[2] / seconds)
    assert curves["grouped_matmul"].at(16, 16, 16) == pytest.approx(2 * 2 * 16**3 / seconds)
    assert curves["attention"].at(16, 32, 8) == pytest.approx(4 * 2 * 16 * 32 * 8 / seconds)
    assert curves["attention_backward"].at(16, 32, 8) == pytest.approx(10 * 2 * 16 * 32 * 8 / seconds)
    assert len(products.rows) == 8 + 2 + 4 + 4
    assert products.notes == []


def test_the_launch_is_taken_out_of_a_products_time() -> None:
    curve = ProductBench(Stopwatch(CPU, Clock()), torch.float32, TINY, launch_seconds=0.5e-3).measure(0.01)["matmul"]
    assert curve.at(8, 32, 64) == pytest.approx(2 * 8 * 32 * 64 / 0.5e-3)


def test_a_kind_that_does_not_run_is_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", refuse)
    products = ProductBench(Stopwatch(CPU, Clock()), torch.float32, TINY, launch_seconds=0.0)
    assert "grouped_matmul" not in products.measure(0.01)
    assert products.notes == ["grouped_matmul float32 does not run here: no such kernel"]
    assert not any("grouped" in row.section for row in products.rows)


def test_noise_only_adds_time_and_larger_messages_are_not_faster() -> None:
    assert monotone([(1, 5.0), (2, 3.0), (3, 9.0), (4, 4.0)]) == [(1, 3.0), (2, 3.0), (3, 4.0), (4, 4.0)]
    assert monotone([(1, 2.0), (2, 2.0)]) == [(1, 2.0), (2, pytest.approx(2.02))]


def test_the_arithmetic_of_a_softmax_is_free_of_its_call_within_reason() -> None:
    work = SOFTMAX_OPS * 256 * 1024
    assert softmax_rate(0.25, 1.0) == pytest.approx(work)
    assert softmax_rate(0.25 + 0.05, 1.0 + 0.05) == pytest.approx(work)
    assert softmax_rate(0.9, 1.0) == pytest.approx(work / 0.9)  # noise
    assert softmax_rate(0.1, 1.0) == pytest.approx(work)


def test_figures_of_a_profile_come_from_the_curves() -> None:
    base = load_profile("cpu-gloo")
    line = Curve(axes=((2**10, 2**20),), values=(4e10, 1e10))
    memory = MemoryFigures(launch_seconds=3e-6, sync_seconds=1e-7, memory=line, element_rate=5e9)
    curves = {
        "matmul": {"bfloat16": Curve(axes=((1, 8), (8,), (8,)), values=(1e9, 8e9))},
        "attention": {"bfloat16": Curve(axes=((1,), (8,), (8,)), values=(2e9,))},
    }
    profile = with_compute(base, memory, curves, "a test")
    assert profile.peak_flops == replace(base.peak_flops, bfloat16=8e9)
    assert (profile.efficiency.matmul, profile.efficiency.attention) == (1.0, 0.25)
    assert profile.efficiency.grouped_matmul == base.efficiency.grouped_matmul
    assert (profile.memory_bandwidth, profile.efficiency.memory, profile.element_rate) == (4e10, 0.25, 5e9)
    assert profile.source("curves.memory.values.0") == profile.source("launch_seconds") == "measured: a test"
    assert profile.source("efficiency.grouped_matmul") == base.source("efficiency.grouped_matmul")
    assert profile.intra_node == base.intra_node


def samples(slow: float = 1.0) -> list[Sample]:
    """A line of 100 us and 1 GB/s, but for all-to-alls of 64 KiB."""
    return [
        Sample(kind, size, 2, (1e-4 + size / 1e9) * (slow if kind == "all_to_all" and size == 2**16 else 1.0))
        for kind in COLLECTIVE_KINDS
        for size in (2**10, 2**16, 2**24)
    ]


@pytest.mark.parametrize("name", ["intra_node", "inter_node"])
def test_a_link_is_fitted_and_what_the_formula_misses_is_kept(name: str) -> None:
    base = load_profile("cpu-gloo")
    exact = with_link(base, name, LinkFindings(samples(), interference=0.3), "a test")
    assert getattr(exact, name).correction is None
    assert getattr(exact, name).interference == 0.3
    other = "inter_node" if name == "intra_node" else "intra_node"
    assert getattr(exact, other) == getattr(base, other)
    assert exact.source(f"{name}.bandwidth") == "measured: a test"
    off = with_link(base, name, LinkFindings(samples(slow=1.5)), "a test")
    assert list(getattr(off, name).correction) == ["all_to_all"]
    for sample in samples(slow=1.5):
        seconds = collective_seconds(sample.kind, sample.bytes, 2, off, ranks_per_node=2 if name == "intra_node" else 1)
        assert seconds == pytest.approx(sample.seconds, rel=0.1)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("duplex", [0.0, 0.4, 1.0])
def test_both_ways_of_an_uneven_exchange(ranks: int, duplex: float) -> None:
    """One rank gets 1.5 times what all give: in turns, its sum counts; at once, the larger."""
    base = load_profile("cpu-gloo")
    most, fewer = 3 * 2**20, 2 * 2**20
    gets, gives = most * (ranks - 1) / ranks, fewer - most / ranks  # over the link
    even = [replace(sample, ranks=ranks) for sample in samples()]
    in_turns, at_once = (1e-4 + n * ranks / (ranks - 1) / 1e9 for n in ((gets + gives) / 2, max(gets, gives)))
    uneven = Uneven(most, fewer, ranks, in_turns + duplex * (at_once - in_turns))
    profile = with_link(base, "inter_node", LinkFindings(even, uneven=uneven), "a test")
    assert profile.inter_node.duplex == pytest.approx(duplex, abs=0.02)
    seconds = collective_seconds("all_to_all", most, ranks, profile, ranks_per_node=1, fewer=fewer)
    assert seconds == pytest.approx(uneven.seconds, rel=0.02)
    assert seconds <= 1.0001 * collective_seconds("all_to_all", most, ranks, profile, ranks_per_node=1)
    tiny = replace(uneven, most=3 * 2**8, fewer=2 * 2**8)
    assert with_link(base, "inter_node", LinkFindings(even, uneven=tiny), "a test").inter_node.duplex is None


def test_a_small_budget_measures_fewer_points() -> None:
    for device in (CPU, torch.device("cuda")):
        few, many = grids(device, quick=True), grids(device, quick=False)
        for entry in ("matmul", "attention", "grouped", "messages"):
            assert str(getattr(few, entry)) != str(getattr(many, entry))
    assert grids(torch.device("cuda"), quick=False).fresh == ()
    assert QUICK_SECONDS > 10


def test_what_can_not_be_calibrated() -> None:
    for arguments, message in (
        ({"budget_seconds": 0}, "budget_seconds=0 is not a time"),
        ({"budget_seconds": float("nan")}, "is not a time"),
        ({"dtypes": ()}, "dtypes names no type"),
    ):
        with pytest.raises(ConfigError, match=message):
            calibrate(device="cpu", **arguments)
    with pytest.raises(ConfigError, match="one rank has no link"):
        calibrate_link(load_profile("cpu-gloo"), device="cpu")
    with pytest.raises(ConfigError, match="is not a message"):
        main._known_kinds({"all_to_all": 0})


def rows(sections: Sequence[str] = ("matmul bfloat16", "attention bwd bfloat16")) -> tuple[MeasuredPoint, ...]:
    return (
        *(
            MeasuredPoint(s, (1024, 1024, 4096 + n), 1e-3, 0.5, 5, 1.234e9, "FLOP/s")
            for s in sections
            for n in range(20)
        ),
        MeasuredPoint("memory", (2**28,), 0.019, 0.01, 5, 1.4e10, "B/s"),
        MeasuredPoint("new pages", (2**25,), 0.019, 0.01, 5, 1.4e10, "B/s"),
        MeasuredPoint("reduce_scatter, 16 ranks", (2**22,), 2.0, 14.3, 5, 8.1e5, "B/s"),
        MeasuredPoint("launch", (16,), 1e-6, 0.0, 5),
    )


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_cuts_nothing(width: int) -> None:
    found = Calibration(load_profile("cpu-gloo"), rows(), "CPU, 1 threads", 16, 31.4, ("a note",))
    for everything in (False, True):
        console = Console(width=width, record=True, force_terminal=False, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(calibration_text(found, console, everything=everything))
        text = console.export_text()
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        assert "…" not in text
        assert ("12 more" in text) != everything
        assert all(
            word in text for word in ("attention bwd bfloat16", "1024x1024x4096", "1.23 GFLOP/s", "note: a note")
        )


def test_one_process_measures_compute_and_the_links_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "grids", lambda device, quick: replace(TINY, strided=(2**14,)))
    monkeypatch.setattr(main.MemoryBench, "compiled", lambda self, seconds: None)  # seconds of a C++ compiler
    base = load_profile("cpu-gloo")
    profile = calibrate(device="cpu", budget_seconds=0.05, dtypes=(torch.float32, torch.bfloat16))
    assert profile.curves is not None
    assert profile.curves.matmul is not None
    assert list(profile.curves.matmul) == ["float32", "bfloat16"]
    assert (profile.intra_node, profile.inter_node) == (base.intra_node, base.inter_node)
    assert profile.element_rate == base.element_rate  # not measured: of the base
    assert profile.sync_seconds is not None
    profile.save(tmp_path / "mine.json")
    assert load_profile(tmp_path / "mine.json") == profile
