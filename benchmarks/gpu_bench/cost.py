# SPDX-License-Identifier: Apache-2.0
"""What our backend costs where it has nothing to hide: step time and peak memory against plain Inductor.

Connectivity "none" changes nothing that is computed. Without a process group nothing is ordered; with a group of one
rank, collectives are launched and take next to no time. Both variants run one after the other in each repetition.

Algorithm, for each group and phase:
1. Compile plain Inductor and ours from one model.
2. Time them, interleaved.
3. Run each once more for its peak of allocated memory.
"""

from __future__ import annotations

import contextlib
import statistics
from typing import Any

from gpu_bench.bench import Bench
from gpu_bench.link import alone
from gpu_bench.results import Cost, Times
from gpu_bench.variants import NONE, PHASES, PLAIN, PREFILL, compiled, ids_of, known_profile, model_of, step_of

NO_GROUP, ONE_RANK = "no group", "world of one"


def measure(bench: Bench) -> None:
    """A row for each group and phase."""
    for name, joined in ((NO_GROUP, contextlib.nullcontext()), (ONE_RANK, alone(bench.device))):
        with joined as group:
            for phase in (PREFILL,) if bench.device.dry else PHASES:
                with bench.attempt(f"{name}, {phase}"):
                    bench.keep(_cost(bench, name, group, phase))


def _cost(bench: Bench, name: str, group: Any, phase: str) -> Cost:
    sizes, device = bench.sizes, bench.device
    model = model_of(sizes.timed, device.kind, sizes.dtype, "padded" if group is not None else "none", group)
    ids = ids_of(sizes.tokens, sizes.timed, device.kind)
    profile = known_profile(device.kind, device.name())
    steps = {}
    for variant in (PLAIN, NONE):  # 1
        run, _ = compiled(model, variant, profile)
        steps[variant] = step_of(phase, model, run, ids)
        with device.building():
            steps[variant]()
    seconds = bench.interleaved(steps)  # 2
    ratio = statistics.median(ours / plain for plain, ours in zip(seconds[PLAIN], seconds[NONE], strict=True))
    peaks = {}
    for variant, step in steps.items():  # 3
        device.start_peak()
        step()
        device.settle()
        peaks[variant] = device.peak()
    times = {variant: Times.of(found) for variant, found in seconds.items()}
    return Cost(name, phase, times[PLAIN], times[NONE], ratio, peaks[PLAIN], peaks[NONE])
