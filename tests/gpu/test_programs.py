# SPDX-License-Identifier: Apache-2.0
"""Programs for GPUs: run by an interpreter over links that use their buffers to the last, and compiled for each device.

Each group of programs is a process of its own, since a device has to be there before torch is imported. `make
.triton/.installed` brings Triton, which a build of PyTorch for CPUs does without, for these processes alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.before_torch import missing

ROOT = Path(__file__).parents[2]
TRITON = ROOT / ".triton"
HAS_TRITON = (TRITON / "triton").is_dir() or importlib.util.find_spec("triton") is not None
REASON = missing() or (None if HAS_TRITON else "Triton is not installed (make .triton/.installed)")
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

TEMPLATES = {"max_autotune_gemm": True, "max_autotune_gemm_backends": "TRITON"}
COMBINED = {"combo_kernels": True}
# one width of all heads, which flash attention needs
HALVES = {"dtype": "bfloat16", "sizes": {"value_head_dim": 24}, "beside": True}
GROUPS: dict[str, dict[str, Any]] = {
    # what a change runs
    "together": {"together": {"variant": "flex", "inductor": {**TEMPLATES, **COMBINED}}},
    # the rest, which is deep; what has no drops is run with CUDA graphs (test_cuda_graphs.py)
    "alone: without drops": {"dropless": {"mode": "dropless"}},
    "halves": {"flash": HALVES},
    "alone: devices": {"h100": {}, "b200": {"device": "b200"}, "mi300x": {"device": "mi300x"}},
    "alone: layouts": {
        "allgather": {"mode": "allgather"},
        "tp": {"mode": "tp"},
        "sliced": {"mode": "allgather", "variant": "sliced"},
    },
    "alone: kernels": {
        "flex": {"variant": "flex"},
        "templates": {"inductor": TEMPLATES},
        "combined": {"inductor": COMBINED},
    },
    "alone: halves on b200": {"flash": {**HALVES, "device": "b200"}},
    "alone: halves on mi300x": {"flash": {**HALVES, "device": "mi300x"}},
    "alone: grouped": {"padded": {**HALVES, "variant": "grouped"}},
    "alone: grouped without drops": {"dropless": {**HALVES, "variant": "grouped", "mode": "dropless"}},
    "alone: grouped template": {"template": {**HALVES, "sizes": {}, "variant": "grouped", "inductor": TEMPLATES}},
    "alone: eight bits": {"fp8": {**HALVES, "sizes": {}, "variant": "fp8"}},
}
FLOAT32, BFLOAT16 = 1e-5, 2e-2
AS_FAR = 1.25
"""Where plain Inductor's program of the same wiring is farther off than that: at most so many times as far."""


@dataclass
class Found:
    """What a process found out about a group of programs."""

    specs: dict[str, Any]
    programs: dict[str, Any]
    folder: Path


def process(module: str, *arguments: str) -> dict[str, Any]:
    """What `module` prints, run by itself."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TRITON, ROOT))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=590, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in GROUPS])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("programs")
    specs = GROUPS[request.param]
    return Found(specs, process("tests.gpu.case", json.dumps(specs), str(folder)), folder)


def hidden(order: str) -> list[int]:
    """For each wait, the products that run since the launch before it, in a program without two in flight."""
    return [len(re.findall("[mA]", part)) for part in re.findall(r"L([^LW]*)W", order)]


def test_output_and_gradients_are_those_of_eager(found: Found) -> None:
    for name, program in found.programs.items():
        within = BFLOAT16 if found.specs[name].get("dtype") == "bfloat16" else FLOAT32
        limit = max(within, AS_FAR * max(program["beside"].values(), default=0.0))
        assert {value: off for value, off in program["off"].items() if not off < limit} == {}, name


def test_calls_are_in_the_order_that_was_decided(found: Found) -> None:
    for name, program in found.programs.items():
        assert program["differences"] == [[], []], name
        assert program["launches"] == program["reported"], name


def test_products_hide_exchanges_forward_and_backward(found: Found) -> None:
    for name, program in found.programs.items():
        for order in program["orders"]:
            assert order.count("L") == order.count("W") > 0, name
            assert max(hidden(order)) > 0, name


def test_every_kernel_compiles_for_its_device(found: Found) -> None:
    compiled = process("tests.gpu.kernels", str(found.folder))
    assert set(compiled) == {spec.get("device", "h100") for spec in found.specs.values()}
    for device in compiled.values():
        assert device["failed"] == {}
        assert device["compiled"] == device["kernels"] > 20
