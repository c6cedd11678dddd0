# SPDX-License-Identifier: Apache-2.0
"""The benchmark's arithmetic, and that the passes do a linear number of operations (counted, not timed)."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from farskip_compile import FarSkipConfig
from farskip_compile.compiler.pipeline import run
from farskip_compile.models import build

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "compile_cost.py"


@pytest.fixture(scope="module")
def cost() -> Any:
    spec = importlib.util.spec_from_file_location("compile_cost", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def measurements(cost: Any, time_of_nodes: Any, share: float = 0.01) -> list[Any]:
    """Sizes of the real model, with made-up times."""
    sizes = {2: 300, 8: 1100, 32: 5000, 61: 9800}
    return [
        cost.Measurement(
            layers=layers,
            nodes=nodes,
            inner="inductor",
            passes={"rewire": time_of_nodes(nodes)},
            ours=1.5 * time_of_nodes(nodes),
            fastest=time_of_nodes(nodes),
            ours_cold=share * 40.0,
            total=40.0,
        )
        for layers, nodes in sizes.items()
    ]


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0])
def test_exponent_is_the_power_of_a_power_law(cost: Any, power: float) -> None:
    assert cost.exponent([(n, 3e-5 * n**power) for n in (300, 1100, 5000, 9800)]) == pytest.approx(power)


def test_exponent_needs_two_sizes(cost: Any) -> None:
    with pytest.raises(ValueError, match="two different sizes"):
        cost.exponent([(300, 1.0), (300, 2.0)])


def test_linear_and_cheap_passes(cost: Any) -> None:
    passed, line = cost.verdict(measurements(cost, lambda n: 1e-4 * n))
    assert passed
    assert line.startswith("PASS: time ~ nodes^1.00 from 8 to 61 layers")
    assert "1.00 % of a cold inductor compile of 61 layers (400 ms of 40.0 s" in line


def test_fixed_costs_do_not_hide_behind_the_fit(cost: Any) -> None:
    """A large constant flattens the curve; it may pass, but only as what it is: less than linear."""
    growth = cost.exponent([(m.nodes, m.fastest) for m in measurements(cost, lambda n: 0.05 + 1e-4 * n)])
    assert growth < 1


@pytest.mark.parametrize(
    "time_of_nodes",
    [lambda n: 1e-7 * n**2, lambda n: 1e-6 * n**1.5, lambda n: 1e-4 * n + 2.5e-8 * n**2],
    ids=["quadratic", "n sqrt n", "a quadratic part of a fifth at 8 layers"],
)
def test_growth_that_is_not_linear_fails(cost: Any, time_of_nodes: Any) -> None:
    passed, line = cost.verdict(measurements(cost, time_of_nodes))
    assert not passed
    assert line.startswith("FAIL")
    assert "limit 1.15: missed" in line
    assert "limit 3 %: met" in line


def test_a_large_share_fails(cost: Any) -> None:
    passed, line = cost.verdict(measurements(cost, lambda n: 1e-4 * n, share=0.031))
    assert not passed
    assert "limit 1.15: met" in line
    assert "limit 3 %: missed" in line


def test_only_the_largest_size_decides_the_share(cost: Any) -> None:
    *small, largest = measurements(cost, lambda n: 1e-4 * n)
    dear = [dataclasses.replace(m, total=m.ours_cold) for m in small]
    captured_only = [dataclasses.replace(m, total=None) for m in small]
    assert cost.verdict([*dear, largest])[0]
    assert cost.verdict([*captured_only, largest])[0]
    assert not cost.verdict([*small, dataclasses.replace(largest, total=None)])[0]  # no total, no verdict


def test_table_has_a_line_for_each_size(cost: Any) -> None:
    head, *rows = cost.table(measurements(cost, lambda n: 1e-4 * n)).splitlines()
    assert head.split()[:3] == ["layers", "nodes", "rewire"]
    assert [row.split()[0] for row in rows] == ["2", "8", "32", "61"]
    assert all(row.endswith("1.00 %") for row in rows)


# Operations


@functools.cache
def captured(layers: int) -> torch.fx.GraphModule:
    graphs: list[torch.fx.GraphModule] = []

    def keep(module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    pattern = ("dense",) + ("moe",) * (layers - 1)
    model = build("deepseek_v3", layers=pattern, vocab_size=32, hidden_size=16, intermediate_size=16)
    with torch.no_grad():
        torch.compile(model, backend=keep, fullgraph=True)(torch.zeros(1, 4, dtype=torch.long))
    (graph,) = graphs
    return graph


def count_calls(function: Any) -> Counter[str]:
    """Calls of Python functions and steps of generators in the passes and the pipeline, by file; of an `__init__.py`,
    by its folder."""
    import farskip_compile.passes

    roots = [Path(str(package.__file__)).parent for package in (farskip_compile, farskip_compile.passes)]
    by_code: Counter[Any] = Counter()

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            by_code[frame.f_code] += 1

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    calls: Counter[str] = Counter()
    for code, count in by_code.items():
        file = Path(code.co_filename)
        if root := next((one for one in roots if file.is_relative_to(one)), None):
            calls[str(file.relative_to(root))] += count
    return calls


def excess(counts: list[int]) -> float:
    """Growth from the second to the third size over that from the first to the second: 1 if linear, more if not."""
    first, second, third = counts
    return (third - second) / (second - first)


SIZES = (4, 8, 12)


@pytest.mark.parametrize("connectivity", ["full", "mlp"])
def test_operations_grow_linearly(connectivity: str) -> None:
    """Each further four layers cost the same number of calls, file by file."""
    config = FarSkipConfig(connectivity=connectivity, inner="eager")
    counts: list[Counter[str]] = []
    nodes: list[int] = []
    run(torch.fx.GraphModule(captured(2), copy.deepcopy(captured(2).graph)), config)  # fills caches of operators
    for layers in SIZES:
        original = captured(layers)
        module = torch.fx.GraphModule(original, copy.deepcopy(original.graph))
        nodes.append(len(module.graph.nodes))
        counts.append(count_calls(functools.partial(run, module, config)))
    assert excess(nodes) == 1
    seen = {"graph/ops.py", "residual/stream.py", "residual/regions.py", "residual/facts.py", "rewire/__init__.py"}
    assert {*seen, "compiler/pipeline.py"} <= set(counts[0])
    assert counts[0].total() > 10 * nodes[0]  # the count does see the work
    for name in counts[-1]:
        of_file = [count[name] for count in counts]
        if of_file[-1] > nodes[-1] / 10:
            assert excess(of_file) <= 1.03, (name, of_file)


def test_the_count_sees_quadratic_work() -> None:
    """The same measure on a pass that looks at pairs of nodes."""
    from farskip_compile.passes.graph import ops

    def pairs(nodes: list[torch.fx.Node]) -> None:
        for left in nodes:
            for right in nodes:
                _ = ops.op_name(left) == ops.op_name(right)

    counts = [
        count_calls(functools.partial(pairs, list(captured(layers).graph.nodes)[::16]))["graph/ops.py"]
        for layers in SIZES
    ]
    assert excess(counts) > 1.4


@pytest.mark.parametrize("inner", ["eager", "none"])
def test_the_benchmark_measures_what_the_backend_does(cost: Any, inner: str) -> None:
    """One small size in this process: all passes are there, and the parts add up to the whole."""
    with torch.compiler.config.patch(force_disable_caches=False):  # the probe sets it; this sets it back
        probe = cost.Probe(2, inner)
    for _ in range(3):
        probe.repeat()
    found = probe.result()
    assert found.nodes > 200
    checks = {"backup", "account", "parameters", "snapshot", "verify"}
    changes = {"arrive", "normalize", "declare", "residual", "request", "rewire", "tags", "lower", "close"}
    assert set(found.passes) == {*checks, *changes, "other"}
    assert 0 < found.fastest <= found.ours
    assert found.total is None if inner == "none" else 0 < found.ours_cold < found.total
    for row in probe.rows:
        assert sum(row.values()) == pytest.approx(2 * row["ours"])
