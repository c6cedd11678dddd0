# SPDX-License-Identifier: Apache-2.0
"""Names that others chose, through every command: shown, not obeyed, and no reason to fail after the work."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.color import ColorSystem
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from farskip_compile.cli import app
from farskip_compile.cli.terminal import Terminal
from farskip_compile.costs import load_profile
from farskip_compile.demo.render import page
from farskip_compile.demo.results import DemoCase
from farskip_compile.errors import ConfigError
from farskip_compile.text_utils import UNPRINTABLE, printable, shortened
from farskip_compile.tools.explain import RefusedModel
from farskip_compile.tools.explain.pages import render
from farskip_compile.tools.explain.text import refusal
from tests.explain.sample_reports import demo, farskip_report
from tests.reading.malformed import EVIL

HERE = "[/x]\x1b[2J[red]<b>\udcff"
"""A folder and a file in it."""
COLUMNS = pytest.mark.parametrize("columns", [80, 120])


def run(*args: Any, columns: int = 80) -> Any:
    result = CliRunner().invoke(app, [*map(str, args)], env={"COLUMNS": str(columns)})
    assert not UNPRINTABLE.search(result.output)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def place(folder: Path, end: str) -> Path:
    path = folder / f"{HERE}{end}"
    path.parent.mkdir(exist_ok=True)
    return path


def printed(*what: Any, width: int = 80) -> str:
    console = Terminal()
    console.file, console.width = io.StringIO(), width
    for one in what:
        console.print(one)
    return console.file.getvalue()


def table(name: str) -> Table:
    found = Table(name, title=name, caption=name)
    found.add_row(name)
    found.add_row(Text(name), end_section=True)
    return found


@COLUMNS
@given(st.text(st.characters(codec="utf-8") | st.sampled_from("\x1b\x07\r\x9b[]/\u202e\ud800"), max_size=30))
def test_a_terminal_obeys_no_name(columns: int, name: str) -> None:
    for name_of_any in (name, f"[/x]{name}", f"[red]{name}[/red]", f":smile:{name}"):
        shown = printed(
            name_of_any, Text(name_of_any), table(name_of_any), Panel(name_of_any, title=Text(name_of_any)),
            Group(Text(name_of_any), table(name_of_any)), refusal(RefusedModel("Error", name_of_any, "", name_of_any)),
            width=columns,
        )  # fmt: skip
        assert not UNPRINTABLE.search(shown)
    if name.isprintable() and len(name) < 20:
        assert f"[/x]{name}" in printed(f"[/x]{name}")


def test_what_a_terminal_shows() -> None:
    assert printed("a\x1b[31mb[/x] :smile:\n\tc").startswith("a\\x1b[31mb[/x] :smile:\n")
    assert printable("a\tb\n\x9b\u202e\ud800é😀") == "a\\tb\\n\\x9b\\u202e\\ud800é😀"
    assert printable("a\tb\n\r", lines=True) == "a\tb\n\\r"
    assert shortened("x" * 500, 100) == "x" * 50 + "..." + "x" * 25
    assert len({len(line) for line in printed(Panel(f"{EVIL}")).splitlines()}) == 1  # the frame stays straight
    assert "end" in printed(Panel("\x1b" * 40 + "end"), width=60)  # escaped before it is wrapped, so nothing is cut


def test_styles_of_this_package_stay() -> None:
    console = Terminal()
    console.file = io.StringIO()
    console._force_terminal, console._color_system = True, ColorSystem.STANDARD
    console.print("[/x]", style="bold")
    assert console.file.getvalue() == "\x1b[1m[/x]\x1b[0m\n"


def test_errors_are_safe_wherever_they_are_printed() -> None:
    error = ConfigError(f"a\n{EVIL}", way_out=EVIL)
    assert not UNPRINTABLE.search(str(error))
    assert error.reason.startswith("a\nk\\x1b[2J")


@COLUMNS
def test_explain(tmp_path: Path, columns: int) -> None:
    pytest.importorskip("matplotlib")
    picture = place(tmp_path, "$\\x$.png")
    result = run("explain", "tests.sample_models:with_args", "--png", picture, columns=columns)
    assert result.exit_code == 0, result.output
    assert "[/x]\\x1b[2J[red]<b>\\udcff" in result.stdout
    assert picture.stat().st_size > 5000
    assert run("explain", EVIL, columns=columns).exit_code == 2
    assert run("explain", "mixtral", "--png", tmp_path / HERE / "x.png" / "y.png").exit_code in (0, 2)


@COLUMNS
def test_manifest(tmp_path: Path, columns: int) -> None:
    path = place(tmp_path, ".json")
    result = run("explain", "tests.sample_models:with_args", "--manifest", path, columns=columns)
    assert result.exit_code == 0, result.output
    assert "[/x]\\x1b[2J[red]<b>\\udcff.json" in result.stdout
    path.write_text('{"\x1b[/x]": 1}'.replace("\x1b", "\\u001b"))
    assert run("explain", "tests.sample_models:with_args", "--manifest", path, columns=columns).exit_code == 2


@COLUMNS
def test_demo(tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = DemoCase(EVIL, EVIL, report=farskip_report("dm"), problem=f"rank 0 failed: {EVIL}")

    def pretend(tell: Any, done: Any, command: str) -> Any:
        tell("[/x] working")
        done(case)
        return demo(case)

    monkeypatch.setattr("farskip_compile.demo.run_demo", pretend)
    out = place(tmp_path, "")
    result = run("demo", "--out", out, columns=columns)
    assert result.exit_code == 1
    assert "[/x]" in result.stdout
    written = (out / "farskip_demo.html").read_bytes().decode()
    assert not UNPRINTABLE.search(written)
    assert "<script" not in written
    assert "&lt;script&gt;" in written
    assert run("demo", "--out", place(tmp_path, "") / "farskip_demo.html").exit_code == 2


@COLUMNS
def test_simulate_and_calibrate_refuse_files_of_others(tmp_path: Path, columns: int) -> None:
    path = place(tmp_path, ".json")
    os.mkfifo(tmp_path / "pipe.json")
    for content in (
        b'{"schema": 2, "schema": 2}', b"[" * 10**5, json.dumps({"schema": EVIL}).encode(),
        json.dumps({"schema": 2, EVIL: 1}).encode(), json.dumps({"schema": 2, "name": [EVIL]}).encode(),
        json.dumps({**load_profile("h100").to_json(), "name": EVIL, "memory_bandwidth": 1e308}).encode(),
    ):  # fmt: skip
        path.write_bytes(content)
        for command in (
            ["simulate", "deepseek-v3", "--device", path],
            ["calibrate", tmp_path / "out.json", "--profile", path, "--quick"],
        ):
            result = run(*command, columns=columns)
            assert result.exit_code == 2, result.output
            assert max(map(len, result.stderr.splitlines())) <= columns
        result = run("simulate", "deepseek-v3", "--device", "h100", "--loads", path, columns=columns)
        assert result.exit_code == 2, result.output
    for option in ("--loads", "--device"):
        result = run("simulate", "deepseek-v3", "--device", "h100", option, tmp_path / "pipe.json", columns=200)
        assert "Not a regular file" in result.stderr
    assert run("simulate", EVIL, "--device", EVIL).exit_code == 2


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[1]",
        b'[{"family": 1, "status": "x"}]',
        b'[{"family": "x"}]',
        b"[" * 10**5,
        b'[{"status":1,"status":1}]',
    ],
)
def test_zoo_refuses_what_is_no_earlier_run(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    path = place(tmp_path, ".json")
    path.write_bytes(content)
    assert run("check", "families", "mixtral", "--against", path).exit_code == 2


def test_distill(tmp_path: Path) -> None:
    path = place(tmp_path, ".toml")
    path.write_text("[[[")
    assert run("heal", path).exit_code == 2


def test_pages_escape_text_attributes_and_nothing_of_their_own() -> None:
    report = dataclasses.replace(demo(DemoCase(EVIL, "about")), command=EVIL, versions={EVIL: EVIL})
    written = page(report)
    assert "<script" not in written
    assert not UNPRINTABLE.search(written)
    drawn = render("timeline.svg.j2", width=1, height="1", label=EVIL, shapes=render("legend.html.j2", cells=[]))
    assert 'aria-label="k\\x1b[2J\\x9b1m[/x][red]&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;' in drawn
    assert '<p class="legend">' in drawn
