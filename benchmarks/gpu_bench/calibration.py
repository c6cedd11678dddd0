# SPDX-License-Identifier: Apache-2.0
"""`farskip calibrate` on this device, among the ranks of a group of one: the profile that it writes.

Links can't be measured on one device: they stay those of the shipped profile. The command needs typer and rich; where
they are missing, what it calls is called, and the row says so.
"""

from __future__ import annotations

import contextlib
import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from farskip_compile.costs import load_profile
from farskip_compile.costs.profile import figures
from gpu_bench.bench import Bench
from gpu_bench.link import alone
from gpu_bench.results import Calibrated

SHOWN = ("peak_flops.bfloat16", "peak_flops.float32", "memory_bandwidth", "launch_seconds", "sync_seconds")
NEEDED = ("typer", "rich")


def measure(bench: Bench) -> None:
    """One row, and the profile as a file."""
    path = bench.folder / "calibrated.json"
    with alone(bench.device):
        missing = [name for name in NEEDED if find_spec(name) is None]
        found = _called(bench, path) if missing else _command(bench, path)
    command = f"calibrate.measure ({', '.join(missing)} not installed)" if missing else "farskip calibrate"
    known = dict(figures(load_profile(path)))  # read back, as the backend does
    shown = {name: known[name] for name in SHOWN if name in known}
    notes = tuple(found["notes"])
    bench.keep(Calibrated(command, found["seconds"], len(found["rows"]), shown, notes))


def _command(bench: Bench, path: Path) -> dict[str, Any]:
    from farskip_compile.cli import app

    budget, written = str(bench.sizes.calibration), io.StringIO()
    with contextlib.redirect_stdout(written):
        app(
            ["calibrate", str(path), "--budget", budget, "--device", bench.device.kind, "--json"],
            standalone_mode=False,
        )
    found: dict[str, Any] = json.loads(written.getvalue())
    return found


def _called(bench: Bench, path: Path) -> dict[str, Any]:
    from farskip_compile.measure.calibrate.main import measure as calibrate

    found = calibrate(device=bench.device.kind, budget_seconds=bench.sizes.calibration)
    found.profile.save(path)
    return found.to_json()
