# SPDX-License-Identifier: Apache-2.0
"""`TORCH_TRACE` and tlparse show what the documentation says: reports and graphs under their compile, schedules beside
them. Two ranks compile a model and take a training step."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import farskip_compile
from farskip_compile.models import ParallelConfig, build
from farskip_compile.passes.contract import PASSES, Stage
from farskip_compile.records.processes import VARIABLE, read_folder
from tests.distributed.ranks import run_ranks
from tests.economy import scalar_kernels

RANKS = 2


def step(rank: int, world_size: int) -> dict[str, Any]:
    """What this rank's process says of a training step."""
    torch.manual_seed(0)
    parallel = ParallelConfig(ep_group=dist.group.WORLD, ep_mode="padded")
    model = build("mixtral", vocab_size=32, hidden_size=32, layers=("moe", "moe"), parallel=parallel)
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"memory_increase": 1.0})
    with scalar_kernels():
        compiled(torch.arange(12).view(2, 6)).sum().backward()
    return {
        "status": farskip_compile.status(compiled).to_json(),
        "text": str(farskip_compile.status(model)),
        "reports": [report.to_json() for report in farskip_compile.reports().compiles],
        "schedules": [schedule.to_json() for schedule in farskip_compile.reports().schedules],
    }


@dataclass(frozen=True)
class Artifact:
    """One artifact of a trace."""

    name: str
    compile: str
    """As tlparse shows it; `-/-` for none."""
    text: str


@dataclass(frozen=True)
class Traced:
    """The folder of the traces, and what each rank said."""

    folder: Path
    processes: Path
    """Where processes leave what `farskip status` reads."""
    said: list[dict[str, Any]]

    def artifacts(self, rank: int) -> list[Artifact]:
        """Those of this package, read as the format is described: a line of JSON, then a payload, indented by tabs."""
        (file,) = self.folder.glob(f"*rank_{rank}_*.log")
        found: list[Artifact] = []
        for record in re.split(r"^(?=V\d{4} )", file.read_text(), flags=re.MULTILINE)[1:]:
            head, _, payload = record.partition("\n")
            about = json.loads(head[head.index("{") :])
            name = about.get("artifact", {}).get("name", "")
            if name.startswith("farskip"):
                text = "\n".join(line.removeprefix("\t") for line in payload.splitlines())
                compile_id = f"{about.get('frame_id', '-')}/{about.get('frame_compile_id', '-')}"
                found.append(Artifact(name, compile_id, text))
        return found


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    folder, processes = tmp_path_factory.mktemp("traces"), tmp_path_factory.mktemp("processes")
    with mock.patch.dict(os.environ, {"TORCH_TRACE": str(folder), VARIABLE: str(processes)}):
        return Traced(folder, processes, run_ranks(step, RANKS, fresh=True, timeout=300))


@pytest.mark.parametrize("rank", range(RANKS))
def test_reports_and_schedules_are_those_of_the_process(traced: Traced, rank: int) -> None:
    found, said = traced.artifacts(rank), traced.said[rank]
    reports = [one for one in found if one.name == "farskip_report"]
    assert [one.compile for one in reports] == ["0/0"]
    assert [json.loads(one.text) for one in reports] == json.loads(json.dumps(said["reports"]))
    schedules = [json.loads(one.text) for one in found if one.name == "farskip_schedule"]
    assert schedules == json.loads(json.dumps(said["schedules"]))
    assert sorted(one["phase"] for one in schedules) == ["backward", "forward"]
    assert {one.compile for one in found if one.name == "farskip_schedule"} == {"-/-"}, "at the first run"


def test_graphs_are_there_before_and_after_what_changed_them(traced: Traced) -> None:
    """Each state once: that before the first pass, and that after each pass that changed it."""
    graphs = [one for one in traced.artifacts(0) if re.fullmatch(r"farskip_\d\d_\w+_(before|after)", one.name)]
    first = next(one for one in PASSES if one.stage is Stage.DYNAMO)
    assert graphs[0].name == f"farskip_01_{first.name}_before"
    assert {one.name.split("_", 2)[1] for one in graphs} > {"01"}
    assert all(one.compile == "0/0" for one in graphs if "rewire" in one.name)
    assert any("rewire" in one.name and one.name.endswith("_after") for one in graphs)
    assert all(one.text.strip() for one in graphs)


def test_tlparse_shows_them(traced: Traced, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = Path(sys.executable).with_name("tlparse")
    command = [program, str(traced.folder), "--all-ranks-html", "-o", str(out), "--no-browser"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for rank in range(RANKS):
        page = (out / f"rank_{rank}" / "index.html").read_text()
        files = {
            path.relative_to(out / f"rank_{rank}").as_posix()
            for path in out.rglob("farskip_*")
            if f"rank_{rank}/" in path.as_posix()
        }
        assert all(name in page for name in files)
        (report,) = (name for name in files if re.search(r"/farskip_report_\d+\.json$", name))
        assert report.startswith("-_0_0_0/")
        found = json.loads((out / f"rank_{rank}" / report).read_text())
        said = json.loads(json.dumps(traced.said[rank]["reports"][0]))
        assert found.pop("seconds") == pytest.approx(said.pop("seconds"))  # tlparse reads floats but for the last bit
        assert found == said
        assert sum("/farskip_schedule_" in name for name in files) == len(traced.said[rank]["schedules"])
        assert any(name.endswith(".txt") and "rewire_after" in name for name in files)
        assert "publish_schedule" not in page, "as the stack of an entry that should have had a compile"


def test_what_is_expected_of_a_model_is_what_its_schedules_say(traced: Traced) -> None:
    """By `status`, in the text for people and in what `farskip status` reads, forward and backward."""
    processes = read_folder(traced.processes)
    assert processes.status == 2, "they have ended"
    assert [(one.head.rank, one.head.ranks, one.answer) for one in processes.processes] == [
        (rank, 2, "REWIRED") for rank in range(2)
    ]
    for said, process in zip(traced.said, processes.processes, strict=True):
        expected = {}
        for schedule in said["schedules"]:
            after = schedule["after"]
            assert after["communication_seconds"] > 0
            expected[schedule["phase"]] = max(0.0, 1 - after["exposed_seconds"] / after["communication_seconds"])
        assert set(expected) == {"forward", "backward"}
        assert {one["phase"]: one["hidden"] for one in said["status"]["overlap"]} == expected
        assert {one.phase: one.hidden for one in process.models[0].last.overlap} == expected
        assert f"expected: {expected['forward']:.0%}".replace("%", " %") in said["text"]
        assert said["status"]["answer"] == "REWIRED"
