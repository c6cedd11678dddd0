# SPDX-License-Identifier: Apache-2.0
"""Sweeps at full size: their scenarios, tables and targets."""

from __future__ import annotations

import dataclasses

import pytest
from scaling import draw, tables, targets
from scaling_bench.sweeps import SWEEPS, Found, with_bandwidth

from farskip_compile.costs import load_profile
from tests.pictures import assert_readable, kept_figures

FOUND = Found(
    sweep="models",
    label="deepseek-v3",
    written=2.0,
    communication=0.5,
    exposed=0.1,
    scheduled=1.0,
    published=1.2,
    farskip=1.25,
    imbalance=1.0,
    parameters=85_000_000_000,
    nodes=11_000,
    took={"model": 2.0, "graphs": 50.0, "passes": 1.5, "orders": 3.0},
    peak_gib=0.9,
)


def test_every_point_is_a_scenario() -> None:
    pytest.importorskip("transformers")
    from farskip_compile.measure.simulate import Scenario

    names = [sweep.name for sweep in SWEEPS.values()]
    assert len(set(names)) == len(names)
    for sweep in SWEEPS.values():
        for point in sweep.points():
            assert Scenario(**point.options).ranks in (8, 16, 32, 64, 128, 256)


def test_two_sequences_have_the_tokens_that_one_has_in_other_sweeps() -> None:
    """A micro-batch is a sequence; rows of two sweeps can be compared."""
    pytest.importorskip("transformers")
    from farskip_compile.measure.simulate import Scenario

    whole, parts = ([Scenario(**point.options) for point in SWEEPS[name].points()] for name in ("ranks-v3", "pieces"))
    assert {one.tokens for one in parts} == {one.tokens for one in whole}
    assert all(one.batch == 2 * one.groups and one.micro_batches == 2 for one in parts)


def test_another_network() -> None:
    profile = load_profile("h100")
    faster = with_bandwidth(profile, 4.0)
    assert faster.inter_node.bandwidth == 4 * profile.inter_node.bandwidth
    assert faster.intra_node == profile.intra_node


def test_tables() -> None:
    slow = dataclasses.replace(FOUND, label="gpt-oss-120b", farskip=1.01, imbalance=1.5)
    text = "\n".join(tables([FOUND, slow]))
    assert "| deepseek-v3 | 2.00 s | 25% | 1.000 x | 1.200 x | 1.250 x | 100.0 ms |  |" in text
    assert "| gpt-oss-120b (fullest rank 1.50 x) |" in text
    assert text.count("not worth it") == 1
    assert "| deepseek-v3 | 85.0 B | 11000 | 48.5 s | 1.50 s | 3.0 s | 55 s | 0.9 GiB |" in text


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, [True, True, True]),
        ({"took": {**FOUND.took, "graphs": 500.0}}, [False, True, True]),
        ({"peak_gib": 21.0}, [True, False, True]),
        ({"farskip": 1.19}, [True, True, False]),
    ],
)
def test_targets(changes: dict[str, object], met: list[bool]) -> None:
    assert [one for one, _ in targets([dataclasses.replace(FOUND, **changes)])] == met


def test_picture(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    found = [dataclasses.replace(FOUND, sweep=name, label=str(place)) for name in SWEEPS for place in range(3)]
    with kept_figures() as figures:
        draw(found, tmp_path / "scaling.png")
    common = ("Prefill in bfloat16", "one sequence of 4096 tokens on each rank", "h100")
    assert_readable(figures[0], *common, "DeepSeek-V3, 64 x H100", "ranks, 8 in a node", "multiples of 400 Gb/s")
    assert all(axes.get_legend() and axes.get_ylabel() for axes in figures[0].axes)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
