# SPDX-License-Identifier: Apache-2.0
"""Names, files and options as nobody should write them, in the command and on the page: shown and not obeyed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from farskip_compile.cli import app
from farskip_compile.measure.profiling import TraceError, merge_traces, overlap, read_trace
from farskip_compile.measure.profiling.page import timeline_svg
from farskip_compile.text_utils import UNPRINTABLE
from tests.profiling.traces import SCHEDULE, document, event, gloo, op, write
from tests.reading.malformed import EVIL, bomb, text


def run(*args: Any, columns: int = 80) -> Any:
    return CliRunner().invoke(app, ["overlap", *map(str, args)], env={"COLUMNS": str(columns)})


EVIL_GROUP = {"Process Group Name": EVIL, "Process Group Description": EVIL, "Collective name": EVIL}
FILE = "[/x]\x1b[2J[red]<b>\udcff.json"
"""A folder and a file, as a file system takes them."""


def place(folder: Path, head: str = "") -> Path:
    path = folder / f"{head}{FILE}"
    path.parent.mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize("columns", [80, 120])
def test_names_reach_neither_terminal_nor_page_unescaped(tmp_path: Path, columns: int) -> None:
    ncclish = event("kernel", f"ncclDevKernel_AllReduce({EVIL})", 3, 40, 7, device=EVIL, stream=EVIL, **EVIL_GROUP)
    kernel = event("kernel", EVIL, 10, 20, 8, device=0, stream=8)
    schedule = {**SCHEDULE, "phase": EVIL, "profile": EVIL}
    trace = place(tmp_path)
    trace.write_bytes(text(document([ncclish, kernel], host_name=EVIL, farskip_schedules=[schedule])))
    page, merged = place(tmp_path, "page"), place(tmp_path, "merged")
    result = run(trace, "--html", page, "--merge", merged, "--all", columns=columns)
    assert result.exit_code == 0, result.output
    assert not UNPRINTABLE.search(result.output)
    assert "\\x1b[2J" in "".join(result.stdout.split())
    assert "[/x]" in result.stdout
    assert result.stdout.count(" 37.0 us ") >= 3  # numbers have their room beside any name
    table = [line for line in result.stdout.splitlines() if str(tmp_path) not in line]
    assert max(map(len, table)) <= columns
    written = page.read_bytes().decode()
    assert not UNPRINTABLE.search(written)
    assert "<script" not in written
    assert "&lt;script&gt;" in written
    assert json.loads(merged.read_text())["farskipRanks"] == [0]
    as_json = run(trace, "--json")
    assert not UNPRINTABLE.search(as_json.stdout)
    assert not UNPRINTABLE.search(json.dumps(json.loads(as_json.stdout), ensure_ascii=False))  # names are kept so
    assert json.loads(as_json.stdout)["ranks"][0]["communication_ns"] == 37_000


@pytest.mark.parametrize("columns", [80, 120])
def test_names_of_cpu_traces(tmp_path: Path, columns: int) -> None:
    events = [gloo("all_reduce", 0, 40), op(f"aten::{EVIL}", 5, 9), op(f"mylib::{'k' * 300}[/x]", 10, 20)]
    path = write(place(tmp_path), [*events, op("graph_0_cpp_fused_[/x]", 20, 30)])
    result = run(path, columns=columns)
    assert result.exit_code == 0, result.output
    assert not UNPRINTABLE.search(result.output)
    assert max(map(len, result.stdout.splitlines())) <= columns


@pytest.mark.parametrize(
    "content",
    [b"{", b'{"traceEvents": [3]}', bomb(b"[", b"0", 2**28), b'{"traceEvents": [], "farskipRanks": "\\u001b"}'],
)
def test_errors_about_files_with_such_names(content: bytes, tmp_path: Path) -> None:
    path = place(tmp_path)
    path.write_bytes(content)
    result = run(path)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not UNPRINTABLE.search(result.output)
    assert max(map(len, result.stderr.splitlines())) <= 80
    missing = run(tmp_path / f"{FILE}.gone", "--html", tmp_path / FILE / "page.html")
    assert missing.exit_code == 2
    assert not UNPRINTABLE.search(missing.output)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "trace.json")
    before = time.monotonic()
    result = run(tmp_path / "trace.json", columns=200)
    assert time.monotonic() - before < 10
    assert result.exit_code == 2
    assert "Not a regular file" in result.stderr


@pytest.mark.parametrize("largest", ["0", "-1", "nan", "inf", "1e9"])
def test_a_limit_that_is_none(largest: str, tmp_path: Path) -> None:
    result = run(write(tmp_path / "trace.json", [gloo("all_reduce", 0, 5)]), "--largest", largest)
    assert result.exit_code == 2
    assert "--largest" in result.stderr


def test_a_number_too_large_for_json_is_not_merged(tmp_path: Path) -> None:
    path = write(tmp_path / "trace.json", [gloo("all_reduce", 0, 5)])
    path.write_text(path.read_text().replace('"dur":', '"more": 1e999, "dur":'))
    assert "1e999" in path.read_text()
    with pytest.raises(TraceError, match="not finite"):
        merge_traces([path], tmp_path / "merged.json")


def test_a_title_of_a_timeline_is_text(tmp_path: Path) -> None:
    report = overlap(read_trace(write(tmp_path / "trace.json", [gloo("all_reduce", 0, 5), op("aten::mm", 0, 5)])))
    drawn = timeline_svg(report, title=EVIL)
    assert not UNPRINTABLE.search(drawn)
    assert "<script" not in drawn
