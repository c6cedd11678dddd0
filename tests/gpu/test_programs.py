"""Programs for GPUs: run by an interpreter over links that use their buffers to the last, and compiled for each device.

Each case is a process of its own, since a device has to be there before torch is imported. `make .triton/.installed`
brings Triton, which a build of PyTorch for CPUs does without, for these processes alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.before_torch import missing

ROOT = Path(__file__).parents[2]
TRITON = ROOT / ".triton"
HAS_TRITON = (TRITON / "triton").is_dir() or importlib.util.find_spec("triton") is not None
REASON = missing() or (None if HAS_TRITON else "Triton is not installed (make .triton/.installed)")
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


def process(module: str, *arguments: str) -> dict[str, Any]:
    """What `module` prints, run by itself."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TRITON, ROOT))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def case(folder: Path, **spec: Any) -> dict[str, Any]:
    given = {"device": "h100", "mode": "padded", "dtype": "float32", "connectivity": "full", "run": False, **spec}
    return process("tests.gpu.case", json.dumps(given), str(folder))


def hidden(order: str) -> list[int]:
    """For each wait, the products that run since the launch before it, in a program without two in flight."""
    return [len(re.findall("[mA]", part)) for part in re.findall(r"L([^LW]*)W", order)]


@pytest.mark.parametrize("mode", ["padded", "dropless", "allgather", "tp"])
def test_what_is_generated_for_a_gpu_computes_what_eager_does(mode: str, tmp_path: Path) -> None:
    found = case(tmp_path, mode=mode, run=True)
    assert found["without"] == [], "of these no gradient came out"
    assert {name: off for name, off in found["off"].items() if not off < 1e-5} == {}
    forward, backward = found["orders"]
    for order in (forward, backward):
        assert order.count("L") == order.count("W") > 0
    assert max(hidden(forward)) > 0
    assert max(hidden(backward)) > 0


@pytest.mark.parametrize("device", ["h100", "b200", "mi300x"])
def test_every_kernel_compiles_for_the_device(device: str, tmp_path: Path) -> None:
    case(tmp_path, device=device, dtype="bfloat16")
    found = process("tests.gpu.kernels", device, str(tmp_path))
    assert found["failed"] == {}
    assert found["compiled"] == found["kernels"] > 20
