# SPDX-License-Identifier: Apache-2.0
"""What runs here, and how fast: versions, the rates of a product and of a copy, and whether the emulated link keeps
time."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import statistics
from collections.abc import Callable

import torch

from gpu_bench.bench import LEAST, Bench
from gpu_bench.results import Machine

PACKAGES = ("torch", "triton")
ASKED = (1e-4, 1e-3)
"""Seconds of a collective."""


def measure(bench: Bench) -> None:
    """One row."""
    device, sizes = bench.device, bench.sizes
    rates = {}
    for dtype in ("bfloat16", "float32"):
        with bench.attempt(f"product, {dtype}"):
            one = torch.randn(sizes.product, sizes.product, device=device.kind).to(getattr(torch, dtype))
            rates[f"product, {dtype}"] = 2 * sizes.product**3 / _seconds(bench, lambda one=one: one @ one)
    with bench.attempt("copy"):
        source = torch.empty(sizes.copied, dtype=torch.uint8, device=device.kind)
        result = torch.empty_like(source)
        rates["copy"] = 2 * sizes.copied / _seconds(bench, lambda: result.copy_(source))
    spins = {}
    for asked in ASKED:
        with bench.attempt(f"a collective of {asked:g} s"):
            spins[f"{asked:g}"] = _seconds(bench, lambda asked=asked: _flight(bench, asked))
    bench.keep(Machine(device.name(), versions(), rates, spins))


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    if torch.version.cuda is not None and torch.cuda.is_available():
        found |= {"cuda": torch.version.cuda, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    return found


def _flight(bench: Bench, seconds: float) -> None:
    bench.device.fly("all_to_all", lambda: None, seconds, 0)()


def _seconds(bench: Bench, run: Callable[[], object]) -> float:
    run()
    return statistics.median(bench.timed(run) for _ in range(max(LEAST, bench.sizes.repetitions)))
