# SPDX-License-Identifier: Apache-2.0
"""`gpu.py` as a whole: its dry run, the limits of its parts, and a checkout without anything installed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import gpu
import pytest
from gpu_bench import run
from gpu_bench.results import DONE, FAILED, LATE, LEFT, ROWS, Failure, Order, Results
from gpu_bench.variants import FULL, PLAIN

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
ROW = '{"kind": "Failure", "what": "a", "why": "b"}'


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip


def test_a_dry_run_goes_through_every_part(tmp_path: Path) -> None:
    docs = sorted((ROOT / "docs").glob("gpu_figures.*"))
    done = command("--dry-run", "--out", str(tmp_path), "--budget", "560")
    assert done.returncode == gpu.OK, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "dry run on a CPU, nothing was measured: PASS"
    found = Results.load(tmp_path / gpu.JSON)
    assert found.dry
    assert [(part.name, part.status) for part in found.parts] == [(name, DONE) for name in gpu.PARTS]
    kinds = {type(row).__name__ for part in found.parts for row in part.rows}
    assert kinds == {*ROWS} - {Failure.__name__}
    for row in found.rows(Order):
        assert row.calls.count("L") == row.calls.count("W") == len(row.hidden) > 0
        assert row.as_decided is (None if row.variant == PLAIN else True)
    under = {
        variant: sum(sum(r.hidden) for r in found.rows(Order) if r.variant == variant) for variant in (PLAIN, FULL)
    }
    assert under[FULL] > under[PLAIN]
    text = (tmp_path / gpu.PAGE).read_text()
    assert text.startswith("# On a GPU: not measured (dry run on a CPU)\n")
    assert "Not measured in this run" not in text
    (tmp_path / gpu.PAGE).unlink()
    assert command("--table", "--out", str(tmp_path)).returncode == gpu.OK
    assert (tmp_path / gpu.PAGE).read_text() == text
    assert sorted((ROOT / "docs").glob("gpu_figures.*")) == docs


def test_the_parts_are_those_that_the_command_names() -> None:
    assert tuple(run.PARTS) == gpu.PARTS


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The status of a part that does what a line of Python says, after it has kept a row."""

    def started(line: str, limit: float, budget: float = 60.0) -> list[run.Part]:
        script = tmp_path / "part.py"
        rows = tmp_path / "machine.rows"
        keep = f"import os, subprocess, sys, time\nopen({str(rows)!r}, 'a').write({ROW + chr(10)!r})\n"
        script.write_text(keep + line)
        monkeypatch.setattr(run, "SCRIPT", script)
        monkeypatch.setattr(run, "LEAST", 0.1)
        monkeypatch.setitem(run.PARTS, "machine", (lambda bench: None, limit))
        return list(run.run_parts(["machine", "machine"], tmp_path, budget, dry_run=False))[:1]

    return started


def test_a_part_has_what_it_kept_however_it_ends(part) -> None:
    (found,) = part("", 20.0)
    assert (found.status, found.why, found.rows) == (DONE, "", (Failure("a", "b"),))
    (found,) = part("print('so it was'); sys.exit(3)", 20.0)
    assert (found.status, found.rows) == (FAILED, (Failure("a", "b"),))
    assert "status 3" in found.why
    assert "so it was" in found.why
    rows = repr("machine.rows")
    (found,) = part(f"open(os.path.join(os.path.dirname(__file__), {rows}), 'a').write('{{\"kind')", 20.0)
    assert found.rows == (Failure("a", "b"),)  # without the half of one


def test_a_part_that_hangs_ends_with_all_its_processes(part, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])"
    start = time.monotonic()
    (found,) = part(f"open({str(pid)!r}, 'w').write(str({child}.pid)); time.sleep(100)", 3.0, budget=3.2)
    assert time.monotonic() - start < 20
    assert (found.status, found.rows) == (LATE, (Failure("a", "b"),))
    for _ in range(50):
        stat = Path(f"/proc/{pid.read_text()}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the child of a part lives on")


def test_what_the_budget_does_not_reach_is_said(tmp_path: Path) -> None:
    (found,) = run.run_parts(["machine"], tmp_path, 1.0, dry_run=False)
    assert (found.status, found.why) == (LEFT, "the budget was spent")


def test_a_bare_checkout_is_enough(tmp_path: Path) -> None:
    """Neither installed, nor with anything but torch, NumPy and pydantic; whatever else is called so."""
    (tmp_path / "farskip_compile").mkdir()
    (tmp_path / "farskip_compile" / "__init__.py").write_text("raise RuntimeError('another copy')")
    code = f"""
import sys

for name in ("rich", "typer", "jinja2", "transformers", "hypothesis"):
    sys.modules[name] = None
sys.meta_path = [one for one in sys.meta_path if "editable" not in repr(one).lower()]
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from gpu_bench.checkout import use_checkout
use_checkout()
import gpu_bench.run, farskip_compile.measure.calibrate.main, farskip_compile.passes, farskip_compile.models
from farskip_compile.compiler.backend import backend
backend(connectivity="full")
print(farskip_compile.__file__, farskip_compile.passes.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [str(ROOT / "farskip_compile" / "__init__.py"), str(ROOT / "passes" / "__init__.py")]
