# SPDX-License-Identifier: Apache-2.0
"""The figures of `gpu.py`: orders read off programs, targets, the file, and the page. Nothing is measured here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gpu
import pytest
from common import DOCS
from gpu_bench import page, targets
from gpu_bench.order import order_of
from gpu_bench.results import (
    DONE,
    LATE,
    Calibrated,
    Correct,
    Cost,
    Failure,
    Graphs,
    Link,
    Machine,
    Order,
    Part,
    Results,
    Times,
)

from farskip_compile.errors import FarSkipError
from farskip_compile.passes.schedule.timeline import ScheduledFlight
from farskip_compile.records.schedule import ScheduleReport

EXCHANGE, WAIT = (
    "torch.ops._c10d_functional.all_to_all_single.default",
    "torch.ops._c10d_functional.wait_tensor.default",
)
PROGRAM = f"""
triton_poi_fused_0 = async_compile.triton('triton_poi_fused_0', ''' def call( '''

def call(args):
    # Source Nodes: torch.ops._c10d_functional.wait_tensor
    triton_poi_fused_0.run(buf0, 8, stream=stream0)
    buf3 = {EXCHANGE}(buf2, [4, 4], [4, 4], '0')
    assert_size_stride(buf3, (8, 5), (5, 1), '{EXCHANGE}')
    extern_kernels.mm(buf0, arg1, out=buf4)
    buf5 = torch.ops.aten._scaled_dot_product_flash_attention.default(buf4, buf4, buf4)
    {WAIT}(buf3)
    torch.ops._c10d_functional.all_reduce_.default(buf6, 'sum', '0')
    del buf3
    {WAIT}(buf6)
    buf8 = torch.ops.aten.topk.default(buf6, 2)
    triton_tem_fused_mm_1.run(buf8, stream=stream0)
    return (buf8, )

def benchmark():
    {WAIT}(buf0)
"""


def report(*compute: float, orders: Any = None) -> ScheduleReport:
    flights = tuple(ScheduledFlight(f"op{place}", (), "0", 0.0, 1.0, one, 0.0) for place, one in enumerate(compute))
    decided = {"0": ["all_to_all_single bfloat16", "all_reduce bfloat16"]}
    return ScheduleReport("forward", orders=orders or decided, flights=flights)


def times(median: float) -> Times:
    return Times(median, 0.9 * median, 1.1 * median, 15)


def link(hidden: float, phase: str = "prefill", variant: str = "full", ratio: float = 0.5, blocks: int = 0) -> Link:
    wire = 0.5
    return Link(phase, variant, ratio, blocks, 1e9, times(1.0 + wire * (1 - hidden)), times(1.0), wire, 8)


ROWS: dict[str, Any] = {
    "machine": Machine("a device", {"torch": "9"}, {"copy": 3e12, "product, bfloat16": 7e14}, {"0.001": 1.01e-3}),
    "cost": Cost("no group", "prefill", times(1.0), times(1.009), 1.009, 10**9, 1_049_000_000),
    "correct": Correct("padded", "bfloat16", 1e-2, 1e-2, "w", ()),
    "graphs": Graphs("full", times(1.0), times(0.5), 0.0, True, 0),
    "order": Order("full", "prefill", "inference", "LmW", (1,), True),
    "link": link(0.99),
    "calibrate": Calibrated("farskip calibrate", 20.0, 99, {"launch_seconds": 2e-6}, ("a note",)),
}


def results(*rows: Any, dry: bool = False, **part: Any) -> Results:
    facts = {"device": "a device", "command": "python x"}
    return Results(facts, dry, [Part(**{"name": "one", "status": DONE, "seconds": 9.0, "rows": rows, **part})])


def verdict(target: str, *rows: Any, **part: Any) -> Any:
    (found,) = (one for one in targets.judge(results(*rows, **part)) if one.target == target)
    return found


def changed(name: str, **fields: Any) -> Any:
    return dataclasses.replace(ROWS[name], **fields)


# Orders


def test_calls_are_read_off_the_program_and_nothing_else() -> None:
    found = order_of(PROGRAM, "plain", "prefill", None, "inference")
    assert found == Order("plain", "prefill", "inference", "kLmAWLWom", (2, 0), None)


@pytest.mark.parametrize(
    ("decided", "differs"),
    [
        (report(1.0, 0.0), ""),
        (report(1.0, 1.0), "what is under the flights 1 of 2"),
        (report(0.0, 1.0), "what is under the flights 0, 1 of 2"),
        (report(1.0), "2 flights, decided: 1"),
        (report(1.0, 0.0, orders={"0": ["all_reduce bfloat16", "all_to_all_single bfloat16"]}), "launches: all_to_all"),
    ],
)
def test_an_order_is_as_decided_or_said_how_not(decided: ScheduleReport, differs: str) -> None:
    found = order_of(PROGRAM, "full", "prefill", decided)
    assert (found.as_decided, found.graph) == (not differs, "forward")
    assert found.differs.startswith(differs)


# Targets


@pytest.mark.parametrize(
    ("target", "row", "met"),
    [
        ("cost", changed("cost", ratio=1.01), True),
        ("cost", changed("cost", ratio=1.011), False),
        ("memory", changed("cost", ours_peak=1_050_000_000), True),
        ("memory", changed("cost", ours_peak=1_051_000_000), False),
        ("correct", changed("correct", output=2e-2), True),
        ("correct", changed("correct", output=2.1e-2), False),
        ("correct", changed("correct", gradient=3e-2, plain_output=0.0, plain_gradient=3e-2), True),
        ("correct", changed("correct", gradient=3.1e-2, plain_output=0.0, plain_gradient=3e-2), False),
        ("correct", changed("correct", dtype="float32"), False),
        ("correct", changed("correct", missing=("w",)), False),
        ("order", changed("order", as_decided=False, differs="so"), False),
        ("hidden", link(0.98), True),
        ("hidden", link(0.979), False),
        ("hidden", link(0.95, "training"), True),
        ("hidden", link(0.949, "training"), False),
        ("graphs", changed("graphs", same=False), False),
        ("graphs", changed("graphs", off=0.1), False),
        ("parts", Failure("padded", "for a reason"), False),
    ],
)
def test_targets(target: str, row: Any, met: bool) -> None:
    assert verdict(target, row).met is met


def test_a_part_that_was_stopped_misses_with_the_reason() -> None:
    found = verdict("parts", status=LATE, why="stopped after 40 s: it hung")
    assert not found.met
    assert "it hung" in found.found


def test_the_form_that_hides_more_counts_at_the_ratio_of_the_target_alone() -> None:
    others = (link(1.0, ratio=0.25), link(1.0, blocks=16), link(1.0, variant="plain"))
    assert not verdict("hidden", link(0.5), *others).met
    assert verdict("hidden", link(0.5), link(0.985, variant="full, pieces")).met
    assert "97.9 %" in verdict("hidden", link(0.97999)).found  # what is missed does not look met


def test_a_dry_run_is_not_judged_by_figures() -> None:
    found = {one.target for one in targets.judge(results(*ROWS.values(), dry=True))}
    assert found == {"correct", "order", "graphs", "parts"}


def test_what_is_exposed_is_what_the_link_adds() -> None:
    row = Link("prefill", "full", 0.5, 0, 1e9, times(1.2), times(1.0), 0.5, 8)
    assert (row.exposed, row.hidden, row.bound) == (pytest.approx(0.2), pytest.approx(0.6), 1.0)
    assert dataclasses.replace(row, wire=1.5).bound == 1.5
    assert dataclasses.replace(row, step=times(0.9)).exposed == 0.0


# The file and the page


def test_the_file_comes_back_and_is_read_strictly(tmp_path: Path) -> None:
    path, found = tmp_path / gpu.JSON, results(*ROWS.values(), Failure("a", "b"))
    found.save(path)
    assert Results.load(path) == found
    data = json.loads(path.read_text())
    for field, value in (("ratio", "much"), ("ratio", None), ("other", 1.0)):
        spoiled = json.loads(json.dumps(data))
        spoiled["parts"][0]["rows"][1][field] = value
        path.write_text(json.dumps(spoiled))
        with pytest.raises(FarSkipError, match=field):
            Results.load(path)
    path.write_text(json.dumps({**data, "schema": 0}))
    with pytest.raises(ValueError, match="measure again"):
        Results.load(path)


def test_the_page_shows_every_row() -> None:
    text = page.page(results(*ROWS.values()), gpu.JSON)
    for part in (
        "# On a GPU: measured\n",
        "- device: a device\n- command: python x\n",
        "- met    no group, prefill cost: 1.009 x plain Inductor (at most 1.01 x)\n",
        "- copy: 3000 GB/s\n- product, bfloat16: 700 TFLOP/s\n- a collective of 1000 us takes 1010.0 us",
        "| no group | prefill | 1000.00 ms (900.00 to 1100.00) | 1009.00 ms (908.10 to 1109.90) | 1.009 x | 1.00 GB |",
        "| prefill | 0.5 | 0 | full | 1000.00 ms (900.00 to 1100.00) | 500.00 ms | 1005.00 ms",
        "| 5.00 ms | 99.0 % | 1.005 x |",
        "| prefill | full | inference | `LmW` | 1 | yes |",
        "| padded | bfloat16 | 1.0e-02 | 1.0e-02 | w |  |",
        "| 2.00 x | 0.0e+00 | the same | 0 |",
        "- `farskip calibrate`: 99 points in 20 s\n- launch_seconds: 2e-06\n- note: a note\n",
    ):
        assert part in text, part
    assert "dry run" not in text
    assert "Not measured" not in text


def test_a_page_of_a_dry_run_says_so_everywhere() -> None:
    lines = page.page(results(*ROWS.values(), dry=True), gpu.JSON).splitlines()
    headings = [line for line in lines if line.startswith("#")]
    assert len(headings) == 9
    assert all(line.endswith("(dry run on a CPU)") for line in headings)
    assert headings[0].startswith("# On a GPU: not measured")
    assert any("no figure below says anything about a GPU" in line for line in lines)


def test_what_is_not_measured_is_said_to_be_missing() -> None:
    text = page.page(results(), gpu.JSON)
    assert text.count("Not measured in this run.") == 7
    assert not any(line.startswith("|") for line in text.splitlines())


# The command


def test_a_dry_run_has_no_figures_for_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.arguments(["--dry-run", "--out", str(DOCS)])
    assert "no figures for docs/" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.arguments(["--budget", "0"])
    assert gpu.arguments([]).budget == 460


def test_without_a_gpu_it_says_what_can_be_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main() == gpu.USAGE
    assert "--dry-run" in capsys.readouterr().err
