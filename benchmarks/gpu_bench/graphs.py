# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs (`mode="reduce-overhead"`) around collectives of a group of one rank: right, and how fast.

Prefill of a small model, whose kernels are short, so that launches cost most. Replays write into the same memory, so
each result is copied before the next one. On a CPU, Inductor leaves graphs out, and says so.

Algorithm, for each variant:
1. Compile and run it without graphs: the right result, and its time.
2. With graphs, run it until they are recorded (the first runs warm up).
3. Compare two replays with each other and with 1; time replays.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._dynamo.utils import counters

from farskip_compile.models import Decoder
from gpu_bench.bench import Bench
from gpu_bench.correct import off
from gpu_bench.link import alone
from gpu_bench.results import Graphs, Times
from gpu_bench.variants import FULL, NONE, PLAIN, PREFILL, compiled, ids_of, model_of, step_of

MODE = "reduce-overhead"
RECORDED = 3
"""Runs after which graphs are replayed."""


def measure(bench: Bench) -> None:
    """A row for each variant."""
    sizes, device = bench.sizes, bench.device
    with alone(device) as group:
        model = model_of(sizes.small, device.kind, sizes.dtype, "padded", group)
        ids = ids_of(sizes.few, sizes.small, device.kind)
        for variant in (FULL,) if device.dry else (PLAIN, NONE, FULL):
            with bench.attempt(variant):
                bench.keep(_graphs(bench, model, ids, variant))


def _graphs(bench: Bench, model: Decoder, ids: torch.Tensor, variant: str) -> Graphs:
    without = _step(bench, model, ids, variant, None)
    right = without().clone()  # 1
    counters["inductor"].pop("cudagraph_skips", None)
    step = _step(bench, model, ids, variant, MODE)
    for _ in range(RECORDED):  # 2
        step()
    replays = [step().clone() for _ in range(2)]  # 3
    seconds = bench.interleaved({"without": without, "graphs": step})
    apart = max(off(replay, right) for replay in replays)
    skipped = counters["inductor"]["cudagraph_skips"]
    times = Times.of(seconds["without"]), Times.of(seconds["graphs"])
    return Graphs(variant, *times, apart, torch.equal(*replays), skipped)


def _step(
    bench: Bench, model: Decoder, ids: torch.Tensor, variant: str, mode: str | None
) -> Callable[[], torch.Tensor]:
    run, _ = compiled(model, variant, mode=mode)
    step = step_of(PREFILL, model, run, ids)
    with bench.device.building():
        step()
    return step
