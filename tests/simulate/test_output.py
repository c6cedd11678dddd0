# SPDX-License-Identifier: Apache-2.0
"""What people see: reasons, tables at 80 and 120 columns, the trace, the picture, the command."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from farskip_compile.cli import app
from farskip_compile.measure.simulate.picture import draw_prediction
from farskip_compile.measure.simulate.results import PhaseResult, exposed_rows
from farskip_compile.measure.simulate.text import duration, prediction_text, verdict
from farskip_compile.measure.simulate.trace import write_trace
from farskip_compile.passes.schedule.program import Program, Task, TaskRole
from farskip_compile.passes.schedule.timeline import flights, simulate
from tests.pictures import assert_readable, backend_kept, kept_figures
from tests.simulate.tiny import predicted

pytest.importorskip("transformers")

pytestmark = pytest.mark.xdist_group("predictions")  # one worker, so that each model is predicted once


def result(*tasks: Task) -> PhaseResult:
    program = Program(tasks)
    order = tuple(range(len(tasks)))
    return PhaseResult("inference", program, order, simulate(program, order), flights(program, order))


def launch(name: str, seconds: float, *terms: str) -> Task:
    return Task(name, (), seconds, TaskRole.LAUNCH, channel="0", terms=terms)


def test_reasons() -> None:
    found = result(
        launch("all_reduce", 1.0, "r0"),
        Task("wait", (), 0.0, TaskRole.WAIT, launch=0),
        launch("all_gather", 1.0, "r1"),
        Task("work", (), 0.5),
        Task("wait_1", (), 0.0, TaskRole.WAIT, launch=2),
        launch("broadcast", 2.0, "a1"),
        launch("all_to_all_single", 0.5, "s1"),
        Task("work_1", (), 1.0),
        Task("wait_2", (), 0.0, TaskRole.WAIT, launch=6),
        Task("wait_3", (), 0.0, TaskRole.WAIT, launch=5),
    )
    rows = {row.operator: (row.reason, round(row.exposed, 6)) for row in exposed_rows(found)}
    assert rows == {
        "all_reduce": ("nothing left to compute", 1.0),
        "all_gather": ("too little to compute", 0.5),
        "all_to_all_single": ("waits for its turn", 1.5),
        "broadcast": ("", 0.0),
    }


def test_alike_are_summed_over_layers() -> None:
    rows = exposed_rows(predicted().farskip.phases[0])
    assert {(row.terms, row.count) for row in rows} == {
        (("a",), 2), (("m",), 1), (("a", "s"), 2), (("r",), 2), (("r", "s"), 1),
    }  # fmt: skip
    assert sum(row.exposed for row in rows) == pytest.approx(predicted().farskip.exposed)


@pytest.mark.parametrize("columns", [80, 120])
def test_text(columns: int) -> None:
    out = io.StringIO()
    Console(file=out, width=columns).print(prediction_text(predicted()))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= columns
    for part in ("deepseek-v3, prefill", "as written", "FarSkip, our order", "nothing left to compute"):
        assert part in " ".join(text.split()), part


def test_not_worth_it_is_an_answer() -> None:
    found = predicted()
    assert "FarSkip brings" in verdict(found)
    assert "Not worth it here" in verdict(replace(found, farskip=found.written))


@pytest.mark.parametrize(("seconds", "text"), [(2.5, "2.50 s"), (0.0123, "12.3 ms"), (4e-5, "40 us"), (-1e-20, "0 us")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_trace(tmp_path) -> None:
    path = tmp_path / "trace.json.gz"
    write_trace(predicted(), path)
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    for process, name in enumerate(("written", "scheduled", "published", "farskip")):
        step = getattr(predicted(), name)
        own = [one for one in events if one["pid"] == process and one["ph"] == "X"]
        by_kind = {kind: sum(one["dur"] for one in own if one["cat"] == kind) for kind in ("compute", "launch", "wait")}
        assert by_kind["compute"] == pytest.approx(1e6 * step.compute, rel=1e-3)
        assert by_kind["launch"] == pytest.approx(1e6 * step.communication, rel=1e-6)
        lanes: dict[int, float] = {}
        for one in sorted(own, key=lambda event: (event["tid"], event["ts"])):
            assert one["ts"] >= lanes.get(one["tid"], 0.0) - 1e-3, "one thing at a time in a lane"
            lanes[one["tid"]] = one["ts"] + one["dur"]


def test_picture(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    found = predicted()
    with kept_figures() as figures, backend_kept():
        draw_prediction(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    asked = found.scenario
    hardware = f"{asked.ranks} x {asked.profile.name}"
    batch = f"{asked.batch} sequences of {asked.prompt} tokens"
    assert_readable(figures[0], asked.architecture.name, f", {asked.phase}: ", hardware, batch, "milliseconds")
    assert [axes.get_legend() is not None for axes in figures[0].axes] == [True, True]


def run(*args: str):
    return CliRunner().invoke(app, ["simulate", *args], env={"COLUMNS": "80"})


def test_command(tmp_path) -> None:
    trace = tmp_path / "trace.json"
    given = [
        "deepseek-v2-lite",
        "--device",
        "mi300x",
        "--layers",
        "3",
        "--prompt",
        "64",
        "--batch",
        "16",
        "--micro-batches",
        "2",
        "--json",
        "--trace",
        str(trace),
    ]
    done = run(*given)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["scenario"]["layers"] == 3
    assert [name for name in found["orders"] if name.endswith(", 2 batches")] == [
        "overlapped, 2 batches",
        "FarSkip, 2 batches",
    ]
    assert found["orders"]["farskip"]["seconds"] <= found["orders"]["written"]["seconds"]
    events = json.loads(trace.read_text())["traceEvents"]
    assert "FarSkip, 2 batches" in {one["args"]["name"] for one in events if one["name"] == "process_name"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["deepsek-v3", "--device", "mi300x"], "did you mean"),
        (["deepseek-v3", "--device", "mi300x", "--ep", "12", "--batch", "12"], "256 experts"),
        (["deepseek-v3", "--device", "nowhere.json"], "nowhere.json"),
    ],
)
def test_wrong_usage(given: list[str], said: str) -> None:
    done = run(*given)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_loads_from_a_file(tmp_path) -> None:
    path = tmp_path / "loads.json"
    path.write_text("[1, 2]")
    done = run("deepseek-v2-lite", "--device", "mi300x", "--loads", str(path))
    assert (done.exit_code, "2 loads are given" in done.stderr) == (2, True)
    path.write_text('{"a": 1}')
    said = run("deepseek-v2-lite", "--device", "mi300x", "--loads", str(path)).stderr
    assert "numbers, one for each expert" in " ".join(said.replace("│", " ").split())
