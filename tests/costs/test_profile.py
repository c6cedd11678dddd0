# SPDX-License-Identifier: Apache-2.0
"""Profiles: JSON there and back, refusals, what is shipped, what fits a device; links fitted to measurements."""

from __future__ import annotations

import itertools
import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farskip_compile.costs import (
    Curve,
    Efficiency,
    HardwareProfile,
    Link,
    PeakFlops,
    PerCollective,
    collective_seconds,
    default_profile,
    load_profile,
    profiles,
)
from farskip_compile.costs.collectives import Sample, fit_link
from farskip_compile.costs.operators import OpCost, flop_rate
from farskip_compile.costs.profile import COLLECTIVE_KINDS, figures
from farskip_compile.errors import ConfigError, FarSkipError

FIGURES = ("peak_flops", "efficiency", "memory_bandwidth", "element_rate", "launch_seconds")
PARTS = (*FIGURES, "ranks_per_node", "intra_node", "inter_node")
POSITIVE = st.floats(1e-3, 1e18)
SMALL = st.floats(0, 10.0)
FRACTION = st.floats(1e-3, 1.0)


def per(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[PerCollective]:
    return st.builds(PerCollective, **dict.fromkeys(COLLECTIVE_KINDS, numbers))


LINKS = st.builds(
    Link,
    bandwidth=POSITIVE,
    efficiency=per(FRACTION),
    latency=per(SMALL),
    step_latency=SMALL,
    peer_bandwidth=st.none() | POSITIVE,
)
PROFILES = st.builds(
    HardwareProfile,
    name=st.text(),
    description=st.text(),
    devices=st.lists(st.text(), max_size=2).map(tuple),
    peak_flops=st.builds(PeakFlops, float32=POSITIVE, bfloat16=st.none() | POSITIVE),
    efficiency=st.builds(Efficiency, matmul=FRACTION, attention=FRACTION, grouped_matmul=FRACTION, memory=FRACTION),
    memory_bandwidth=POSITIVE,
    element_rate=POSITIVE,
    launch_seconds=SMALL,
    ranks_per_node=st.integers(1, 1000),
    intra_node=LINKS,
    inter_node=LINKS,
    sources=st.just(dict.fromkeys(PARTS, "drawn")),
)


@settings(max_examples=30)
@given(PROFILES)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, profile: HardwareProfile) -> None:
    path = tmp_path_factory.mktemp("profile") / "mine.json"
    profile.save(path)
    again = load_profile(path)
    assert again == profile
    assert again.digest() == profile.digest()
    assert hash(again) == hash(profile)
    assert HardwareProfile.from_json(profile.to_json()) == profile


def broken(change: str, value: Any) -> dict[str, Any]:
    """The h100 profile with the entry at a dotted path changed; a value of `...` removes it."""
    data = load_profile("h100").to_json()
    *outer, last = change.split(".")
    part = data
    for name in outer:
        part = part[name]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return data


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("schema", 3, "schema is 3"),
        ("schema", ..., "schema is None"),
        ("memory_bandwith", 1.0, "unknown field memory_bandwith[^$]*did you mean 'memory_bandwidth'"),
        ("intra_node.latency.all_two_all", 1.0, "unknown field intra_node.latency.all_two_all"),
        ("memory_bandwidth", ..., "memory_bandwidth is missing"),
        ("inter_node.efficiency.broadcast", ..., "inter_node.efficiency.broadcast is missing"),
        ("memory_bandwidth", "fast", "memory_bandwidth must be a number, not str"),
        ("memory_bandwidth", True, "memory_bandwidth must be a number, not bool"),
        ("peak_flops.bfloat16", None, "peak_flops.bfloat16 must be a number, not null"),
        ("ranks_per_node", 8.0, "ranks_per_node must be an integer"),
        ("ranks_per_node", 0, "ranks_per_node = 0"),
        ("intra_node", [1], "intra_node must be a JSON object"),
        ("devices", "H100", "devices must be a list, not str"),
        ("name", 3, "name must be a string"),
        ("memory_bandwidth", 0, "memory_bandwidth = 0.0 must be a positive"),
        ("memory_bandwidth", float("inf"), "Infinity is not a number"),
        ("memory_bandwidth", 10**400, "is an integer of 401 digits"),
        ("memory_bandwidth", 1e308, r"memory_bandwidth = 1e\+308 must be a positive number"),
        ("memory_bandwidth", 1e-308, "memory_bandwidth = 1e-308 must be a positive number"),
        ("intra_node.latency.all_reduce", 1e30, r"all_reduce = 1e\+30 must be a positive number"),
        ("ranks_per_node", 10**30, "ranks_per_node = 1000000000000000000000000000000"),
        ("curves", {"matmul": {"float32": {"axes": [[1.0]], "values": [1.0]}}}, "has 1 sizes and not 3"),
        ("curves", {"memory": {"axes": [[1.0]] * 3, "values": [1.0]}}, "has 3 sizes and not 1"),
        ("curves", {"matmul": {"a" * 99: {"axes": [[1.0]] * 3, "values": [1.0]}}}, "is not a data type"),
        ("intra_node.correction", {"some": {"axes": [[1.0]] * 2, "values": [1.0]}}, "is not a kind of collective"),
        ("intra_node.correction", {"all_reduce": {"axes": [[1.0]], "values": [1.0]}}, "has 1 sizes and not 2"),
        ("efficiency.matmul", 1.2, "efficiency.matmul = 1.2 is a fraction"),
        ("inter_node.latency.broadcast", -1e-6, "inter_node.latency.broadcast = -1e-06"),
        ("sources.memory_bandwidth", ..., "memory_bandwidth has no source"),
        ("sources.memory", "a book", "sources names 'memory'"),
        ("sources.memory_bandwidth", 3, "sources.memory_bandwidth must be a string, not int 3"),
    ],
)
def test_refusals_name_the_field(tmp_path: Path, change: str, value: Any, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(broken(change, value)))
    with pytest.raises(ConfigError, match=message) as caught:
        load_profile(path)
    assert caught.value.way_out or "schema" not in message


def test_unreadable_files_and_unknown_names(tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("{")
    for name, message in (
        (tmp_path / "no.json", "can't read"),
        (tmp_path / "absent.json", "can't read"),
        ("h10", "did you mean 'h100'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_profile(name)
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(FarSkipError, match="the whole must be a JSON object"):
        load_profile(tmp_path / "list.json")


def test_every_shipped_profile_loads_and_every_figure_has_a_source() -> None:
    assert profiles() == ["b200", "cpu-gloo", "h100", "h200", "mi300x", "mi325x"]
    for name in profiles():
        profile = load_profile(name)
        assert profile.name == name
        for path, _ in figures(profile):
            source = profile.source(path) or ""
            assert re.search("https?://|measured|estimate|abstract of|Ethernet", source), (name, path, source)
    digests = {load_profile(name).digest() for name in profiles()}
    assert len(digests) == len(profiles())


AMD = {
    "matmul": ["float8"],
    "attention": ["bfloat16"],
    "attention_backward": ["bfloat16"],
    "grouped_matmul": ["bfloat16", "float8"],
}
HOPPER = {**AMD, "matmul": ["bfloat16", "float8"]}
BLACKWELL = {**{kind: HOPPER[kind] for kind in ("matmul", "attention", "attention_backward")}, "grouped_matmul": []}
CURVES = {"mi300x": AMD, "mi325x": AMD, "h100": HOPPER, "h200": HOPPER, "b200": BLACKWELL}
"""Which rates by size were found for each GPU: kind, and types of the operands."""


def lines(curve: Curve, axis: int) -> list[list[tuple[float, float]]]:
    """The curve's points (size, rate) along one axis, once for each point of the others."""
    found = []
    for rest in itertools.product(*(sizes for other, sizes in enumerate(curve.axes) if other != axis)):
        points = [(size, (*rest[:axis], size, *rest[axis:])) for size in curve.axes[axis]]
        found.append([(size, curve.at(*point)) for size, point in points])
    return found


@pytest.mark.parametrize("name", CURVES)
def test_rates_by_size_stay_below_the_peak_and_grow_with_the_rows(name: str) -> None:
    """Rates of rows (of attention: keys) may fall by noise alone, and may not grow so fast that more work is faster."""
    profile = load_profile(name)
    assert profile.curves is not None
    for kind, dtypes in CURVES[name].items():
        by_type = getattr(profile.curves, kind) or {}
        assert sorted(by_type) == dtypes, kind
        for dtype, curve in by_type.items():
            peak = getattr(profile.peak_flops, dtype)
            assert len(curve.axes) == 3
            assert 1e12 < min(curve.values) < max(curve.values) < peak, (kind, dtype)
            assert max(curve.values) > 0.25 * peak, (kind, dtype)
            for line in lines(curve, axis=1 if "attention" in kind else 0):
                for (size, rate), (larger, faster) in itertools.pairwise(line):
                    assert 0.9 * rate < faster < 1.1 * rate * larger / size, (kind, dtype, size, larger)
            source = profile.source(f"curves.{kind}.{dtype}.values.0") or ""
            assert "https://github.com/" in source, (kind, dtype)


@pytest.mark.parametrize(
    ("name", "kind", "dtype", "shape", "rate"),
    [
        ("mi300x", "matmul", torch.float8_e4m3fnuz, (16, 7168, 512), 6.39e12),
        ("mi300x", "matmul", torch.float8_e4m3fnuz, (4096, 2304, 7168), 707.9e12),
        ("mi300x", "grouped_matmul", torch.float8_e4m3fnuz, (70, 7168, 4096), 431.1e12),
        ("mi300x", "attention", torch.bfloat16, (4096, 4096, 128), 433.9e12),
        ("h100", "matmul", torch.bfloat16, (64, 7168, 2112), 163.5e12),
        ("h200", "attention", torch.bfloat16, (8192, 8192, 192), 641.5e12),
        ("b200", "matmul", torch.float8_e4m3fn, (1, 4096, 6144), 8.451e12),
        ("b200", "grouped_matmul", torch.bfloat16, (512, 7168, 4096), 0.45 * 2.25e15),  # nothing found: the scalar
    ],
)
def test_shipped_rates_at_shapes_of_their_sources(
    name: str, kind: Any, dtype: torch.dtype, shape: tuple[int, int, int], rate: float
) -> None:
    cost = OpCost(10**12, 0, 0, dtype, kind, shape=shape)
    assert flop_rate(cost, load_profile(name)) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("device_type", "device", "name", "warns"),
    [
        ("cpu", "", "cpu-gloo", False),
        ("cuda", "NVIDIA H100 80GB HBM3", "h100", False),
        ("cuda", "NVIDIA H200", "h200", False),
        ("cuda", "NVIDIA B200", "b200", False),
        ("cuda", "AMD Instinct MI300X OAM", "mi300x", False),
        ("cuda", "AMD Instinct MI325X", "mi325x", False),
        ("cuda", "NVIDIA H100 PCIe", "h100", True),
        ("cuda", "NVIDIA GB200", "b200", True),
        ("cuda", "AMD Instinct MI355X", "mi300x", True),
        ("cuda", "NVIDIA GeForce RTX 4090", "h100", True),
        ("xpu", "Intel(R) Data Center GPU Max 1550", "h100", True),
    ],
)
def test_default_profile(
    device_type: str, device: str, name: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="farskip_compile"):
        assert default_profile(device_type, device).name == name
    assert [device in record.message and "profile" in record.message for record in caplog.records] == [True] * warns


@settings(max_examples=30)
@given(
    per(st.floats(1e7, 1e12)),
    per(st.floats(0, 1e-2)),
    st.floats(0, 1e-4),
    st.lists(st.integers(2, 16), min_size=1, max_size=3),
)
def test_a_fitted_link_gives_the_measured_times_back(
    rates: PerCollective, latency: PerCollective, step: float, groups: list[int]
) -> None:
    peak = max(rates.of(kind) for kind in COLLECTIVE_KINDS)
    efficiency = PerCollective(**{kind: rates.of(kind) / peak for kind in COLLECTIVE_KINDS})
    link = Link(bandwidth=peak, efficiency=efficiency, latency=latency, step_latency=step, interference=0.0)
    profile = replace(load_profile("h100"), intra_node=link, ranks_per_node=64)
    samples = [
        Sample(kind, size, ranks, collective_seconds(kind, size, ranks, profile))
        for kind in COLLECTIVE_KINDS
        for ranks in groups
        for size in (10**3, 10**6, 10**9)
    ]
    fitted = replace(profile, intra_node=replace(fit_link(samples, step_latency=step), interference=0.0))
    for sample in samples:
        seconds = collective_seconds(sample.kind, sample.bytes, sample.ranks, fitted)
        assert seconds == pytest.approx(sample.seconds, rel=1e-3)


def test_errors_of_large_messages_leave_the_latency_alone() -> None:
    """Errors count relative to the time: 5 % of a second are no reason to misjudge 100 microseconds."""
    sizes = (10**3, 10**4, 10**6, 10**9)
    exact = [Sample(kind, size, 2, 100e-6 + size / 1e9) for kind in COLLECTIVE_KINDS for size in sizes]
    noisy = [replace(s, seconds=s.seconds * 1.05) if s.bytes == 10**9 else s for s in exact]
    assert fit_link(noisy).latency.all_to_all == pytest.approx(100e-6, rel=0.05)


def test_measurements_that_fit_no_link() -> None:
    good = [Sample(kind, size, 2, size / 1e9 + 1e-6) for kind in COLLECTIVE_KINDS for size in (10, 10**6)]
    fit_link(good)
    with pytest.raises(ConfigError, match="broadcast was measured for less than two sizes"):
        fit_link([sample for sample in good if sample.kind != "broadcast"])
    with pytest.raises(ConfigError, match="all_reduce did not take longer"):
        fit_link([*good, Sample("all_reduce", 10**9, 2, 1e-9)])
    with pytest.raises(ConfigError, match="bandwidth"):
        fit_link(good, bandwidth=1.0)
