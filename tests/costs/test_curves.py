# SPDX-License-Identifier: Apache-2.0
"""Measured rates by size: interpolation, refusals, and what they do to profiles and costs."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.costs import Curve, Curves, HardwareProfile, collective_seconds, load_profile, profiles
from farskip_compile.costs.collectives import interference
from farskip_compile.costs.operators import OpCost, op_seconds
from farskip_compile.costs.profile import COLLECTIVE_KINDS
from farskip_compile.errors import ConfigError

SIZES = st.lists(st.integers(1, 10**6), min_size=1, max_size=4, unique=True).map(sorted)


@given(SIZES, SIZES, st.data())
def test_a_curve_meets_its_points_and_stays_between_neighbours(first: list[int], second: list[int], data) -> None:
    count = len(first) * len(second)
    values = data.draw(st.lists(st.floats(1e-3, 1e15), min_size=count, max_size=count))
    curve = Curve(axes=(tuple(first), tuple(second)), values=tuple(values))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            assert curve.at(a, b) == pytest.approx(values[i * len(second) + j])
    anywhere = curve.at(data.draw(st.floats(0.1, 1e7)), data.draw(st.floats(0.1, 1e7)))
    assert min(values) * (1 - 1e-9) <= anywhere <= max(values) * (1 + 1e-9)


def test_between_points_a_power_law_is_met_exactly_and_beyond_them_the_edge_counts() -> None:
    curve = Curve(axes=((1, 100), (4, 64)), values=(8.0, 128.0, 80.0, 1280.0))  # 2 sqrt(a) b
    assert curve.at(9, 16) == pytest.approx(2 * 3 * 16)
    assert curve.at(0.01, 4) == pytest.approx(8.0)
    assert curve.at(10**9, 10**9) == pytest.approx(1280.0)
    with pytest.raises(ConfigError, match="2 sizes was evaluated at 1"):
        curve.at(3)


@pytest.mark.parametrize(
    ("axes", "values", "message"),
    [
        (((1, 2),), (1.0,), "2 points has 1 values"),
        ((), (), "no points"),
        (((2, 1),), (1.0, 1.0), "do not ascend"),
        (((1, 1),), (1.0, 1.0), "do not ascend"),
        (((0, 1),), (1.0, 1.0), "not positive"),
        (((1, 2),), (1.0, float("nan")), "not positive"),
    ],
)
def test_curves_that_can_not_be(axes, values, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Curve(axes=axes, values=values)


LINE = Curve(axes=((1024, 2**20),), values=(1e9, 1e10))
GRID = Curve(axes=((1, 1024), (64, 1024), (64, 1024)), values=tuple(1e9 * 2**n for n in range(8)))


def with_curves(**changes: object) -> HardwareProfile:
    base = load_profile("cpu-gloo")
    curves = Curves(
        matmul={"float32": GRID},
        attention={"float32": GRID},
        attention_backward={"float32": replace(GRID, values=(1e8,) * 8)},
        memory=LINE,
        strided=Curve(axes=LINE.axes, values=(1e8, 1e9)),
        fresh=Curve(axes=((2**25,),), values=(2e9,)),
    )
    sources = {**base.sources, "curves": "drawn", "sync_seconds": "drawn"}
    return replace(base, curves=curves, sync_seconds=2e-6, sources=sources, **changes)


def test_profiles_with_curves_survive_a_file_and_the_digest_covers_every_number(tmp_path: Path) -> None:
    link = replace(
        load_profile("cpu-gloo").intra_node,
        interference=0.4,
        duplex=0.25,
        correction={"all_to_all": Curve(axes=((2,), (1024,)), values=(1.5,))},
    )
    profile = with_curves(intra_node=link)
    profile.save(tmp_path / "mine.json")
    again = load_profile(tmp_path / "mine.json")
    assert again == profile
    assert (again.digest(), hash(again)) == (profile.digest(), hash(profile))
    assert json.loads((tmp_path / "mine.json").read_text())["schema"] == 2
    assert profile.source("curves.matmul.float32.values.3") == "drawn"
    assert profile.curves is not None
    other = replace(GRID, values=(*GRID.values[:-1], 1.0))
    changes = (
        {"curves": replace(profile.curves, matmul={"float32": other})},
        {"curves": replace(profile.curves, matmul={"bfloat16": GRID})},
        {"curves": replace(profile.curves, memory=replace(LINE, axes=((1024, 2**21),)))},
        {"curves": replace(profile.curves, fresh=None)},
        {"sync_seconds": 3e-6},
        {"intra_node": replace(link, interference=0.5)},
        {"intra_node": replace(link, duplex=0.5)},
        {"intra_node": replace(link, correction=None)},
    )
    digests = {replace(profile, **change).digest() for change in changes}
    assert len(digests | {profile.digest()}) == 1 + len(changes)


def test_files_of_schema_1_are_read_and_curves_need_a_source() -> None:
    for name in profiles():
        data = load_profile(name).to_json()
        assert HardwareProfile.from_json({**data, "schema": 1}) == load_profile(name)
    data = with_curves().to_json()
    del data["sources"]["curves"]
    with pytest.raises(ConfigError, match=r"curves\.\S+ has no source"):
        HardwareProfile.from_json(data)
    data = with_curves().to_json()
    data["curves"]["memory"]["values"] = [1.0, "fast"]
    with pytest.raises(ConfigError, match=r"curves\.memory\.values\.1 must be a number"):
        HardwareProfile.from_json(data)


def test_measured_rates_count_instead_of_efficiencies() -> None:
    profile = with_curves()
    launch = profile.launch_seconds

    def seconds(**known: object) -> float:
        fields = {"flops": 10**9, "bytes_read": 0, "bytes_written": 0, "dtype": torch.float32, "kind": "matmul"}
        return op_seconds(OpCost(**{**fields, **known}), profile) - launch

    assert seconds(shape=(1, 64, 64)) == pytest.approx(1.0)
    assert seconds(shape=(4096, 1024, 1024)) == pytest.approx(1 / 128)
    assert seconds() == pytest.approx(1e9 / (1.05e11 * 0.95))  # no shape: the scalar
    assert seconds(shape=(1, 64, 64), dtype=torch.bfloat16) == pytest.approx(1e9 / (2.26e11 * 0.95))  # no curve
    assert seconds(shape=(1, 64, 64), kind="attention") == pytest.approx(1.0)
    assert seconds(shape=(1, 64, 64), kind="attention", backward=True) == pytest.approx(10.0)
    loop = {"flops": 0, "kind": "memory", "dtype": None}
    assert seconds(**loop, bytes_read=2**20) == pytest.approx(2**20 / 1e10)
    assert seconds(**loop, bytes_read=2**20, transposed_bytes=2**20) == pytest.approx(2**20 / 1e9)
    assert seconds(**loop, bytes_read=2**20, fresh=(2**25, 2**26)) == pytest.approx(2**20 / 1e10 + 3 * 2**25 / 2e9)
    assert op_seconds(OpCost(0, 4, 0, torch.float32, "sync"), profile) == 2e-6


@pytest.mark.parametrize("duplex", [-0.1, 1.1, float("nan")])
def test_ways_overlap_by_a_part(duplex: float) -> None:
    base = load_profile("cpu-gloo")
    with pytest.raises(ConfigError, match=r"intra_node\.duplex"):
        replace(base, intra_node=replace(base.intra_node, duplex=duplex))


def test_corrections_and_interference_of_the_link_that_a_group_uses() -> None:
    base = load_profile("cpu-gloo")
    inside = replace(
        base.intra_node, interference=0.5, correction={"all_to_all": Curve(axes=((2,), (10, 1000)), values=(2.0, 3.0))}
    )
    profile = replace(base, intra_node=inside, ranks_per_node=4)
    for kind in COLLECTIVE_KINDS:
        factor = 3.0 if kind == "all_to_all" else 1.0
        plain = collective_seconds(kind, 5000, 2, replace(base, ranks_per_node=4))
        assert collective_seconds(kind, 5000, 2, profile) == pytest.approx(factor * plain)
        assert collective_seconds(kind, 5000, 8, profile) == collective_seconds(
            kind, 5000, 8, replace(base, ranks_per_node=4)
        )
    assert [interference(ranks, profile) for ranks in (1, 2, 4, 8)] == [0.0, 0.5, 0.5, 0.0]
    # between two sizes seconds grow linearly, whatever the formula says; below and above as the formula's
    all_to_all = functools.partial(collective_seconds, "all_to_all", ranks=2, profile=profile)
    low, high = all_to_all(10), all_to_all(1000)
    assert [all_to_all(size) for size in (10, 505, 604)] == pytest.approx(
        [low, (low + high) / 2, low + 0.6 * (high - low)]
    )
    assert all_to_all(5) == pytest.approx(2 * collective_seconds("all_to_all", 5, 2, replace(base, ranks_per_node=4)))
    assert all_to_all(0) > 0
    assert interference(2, profile, ranks_per_node=1) == 0.0
