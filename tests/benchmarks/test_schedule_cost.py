# SPDX-License-Identifier: Apache-2.0
"""The benchmark of what scheduling costs: its arithmetic, and that it sees all parts of a compile."""

from __future__ import annotations

from typing import Any

import pytest
import schedule_cost
import torch
from schedule_cost import Measurement

from farskip_compile.models import ParallelConfig, build
from tests.inductor.test_generated_order import get_code_of


def measurements(share: float, power: float, phase: str = "prefill") -> list[Measurement]:
    """Sizes with made-up times; the largest has that share."""
    found = []
    for layers, kernels in ((8, 600), (32, 2400), (61, 4600)):
        spent = 3.0 * (kernels / 4600) ** power
        parts = {"graph": 0.5 * spent, "pins": 0.1 * spent, "kernels": 0.4 * spent}
        found.append(Measurement(layers, phase, 3 * kernels, kernels, 4 * layers, parts, total=3.0 / share))
    return found


@pytest.mark.parametrize(
    ("share", "power", "passed"), [(0.019, 1.1, True), (0.021, 1.1, False), (0.019, 1.29, True), (0.019, 1.31, False)]
)
def test_both_limits_hold_or_the_verdict_says_which_does_not(share: float, power: float, passed: bool) -> None:
    good, line = schedule_cost.verdict(measurements(share, power))
    assert good is passed
    assert line.startswith("PASS" if passed else "FAIL")
    assert ("missed" in line) is not passed
    assert f"{100 * share:.2f} %" in line
    assert f"kernels^{power:.2f}" in line


def test_one_phase_that_misses_is_enough() -> None:
    good, line = schedule_cost.verdict([*measurements(0.01, 1.0), *measurements(0.03, 1.0, "training")])
    assert not good
    assert [one[:14] for one in line.splitlines()] == ["PASS: prefill,", "FAIL: training"]


def test_the_table_names_every_part() -> None:
    head, *rows = schedule_cost.table(measurements(0.01, 1.0)).splitlines()
    assert all(part in head for part in schedule_cost.PARTS)
    assert len(rows) == 3
    assert max(map(len, (head, *rows))) <= 120


def test_every_part_of_a_compile_is_timed(two_ranks: Any) -> None:
    model = build(
        "deepseek_v3", parallel=ParallelConfig(ep_group=two_ranks), vocab_size=32, layers=("moe",), hidden_size=64
    )
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"check_order": False})
    with torch._functorch.config.patch(force_non_lazy_backward_lowering=True), schedule_cost._timed_parts() as found:
        get_code_of(compiled, torch.randint(0, 32, (1, 16)))
    seconds, counts = found
    assert all(seconds[part] > 0 for part in schedule_cost.PARTS)
    assert counts["collectives"] == 4  # dispatch and combine, forward and backward
    assert counts["nodes"] > counts["kernels"] > 20
