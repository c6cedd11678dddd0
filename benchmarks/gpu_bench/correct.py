# SPDX-License-Identifier: Apache-2.0
"""What is compiled for the device, against the FarSkip form written by hand in eager mode: outputs and gradients.

The group is a real one, of one rank. The form by hand knows nothing of the compiler, and has the same weights. Errors
are over the largest number of the right result. Where ours is beyond the limit, plain Inductor is compared with the
plain model in the same way: rounding may turn a router's choice, in any compiler.

Algorithm, for each type and way to be parallel:
1. The form by hand: logits, and the gradients of their squares.
2. The same, compiled.
3. Only if they are further apart than the limit: the plain model in both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from farskip_compile.models import Decoder, FarSkipForm
from gpu_bench.bench import Bench
from gpu_bench.link import alone
from gpu_bench.results import Correct
from gpu_bench.sizes import LIMITS
from gpu_bench.variants import FULL, PLAIN, TRAINING, compiled, ids_of, model_of, step_of

FAR = 1e30
"""How far off a number is that is none, or infinite."""

Found = tuple[torch.Tensor, Mapping[str, torch.Tensor]]


def measure(bench: Bench) -> None:
    """A row for each type and way to be parallel."""
    sizes, device = bench.sizes, bench.device
    ids = ids_of(sizes.few, sizes.small, device.kind)
    with alone(device) as group:
        for dtype in sizes.types:
            for mode in sizes.modes:
                with bench.attempt(f"{mode}, {dtype}"):
                    torch.compiler.reset()
                    model = model_of(sizes.small, device.kind, dtype, mode, group)
                    bench.keep(_correct(bench, model, ids, mode, dtype))


def _correct(bench: Bench, model: Decoder, ids: torch.Tensor, mode: str, dtype: str) -> Correct:
    right = _results(model, FarSkipForm(model), ids)  # 1
    ours, _ = compiled(model, FULL)
    with bench.device.building():
        found = compared(_results(model, ours, ids), right, mode, dtype)  # 2
    if max(found.output, found.gradient) <= LIMITS[dtype]:
        return found
    plain, _ = compiled(model, PLAIN)
    with bench.device.building():
        other = compared(_results(model, plain, ids), _results(model, model, ids), mode, dtype)  # 3
    return replace(found, plain_output=other.output, plain_gradient=other.gradient)


def _results(model: Decoder, run: Any, ids: torch.Tensor) -> Found:
    output = step_of(TRAINING, model, run, ids)().clone()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compared(found: Found, right: Found, mode: str, dtype: str) -> Correct:
    """How far `found` is off."""
    apart = {name: off(found[1][name], gradient) for name, gradient in right[1].items() if name in found[1]}
    worst = max(apart, key=apart.__getitem__, default="")
    missing = tuple(sorted(right[1].keys() - found[1].keys()))
    return Correct(mode, dtype, off(found[0], right[0]), apart.get(worst, 0.0), worst, missing)


def off(found: torch.Tensor, right: torch.Tensor) -> float:
    largest = right.double().abs().max().clamp_min(1e-30)
    apart = (found.double() - right.double()).abs() / largest
    return float(apart.nan_to_num(FAR, FAR).max())  # a maximum could lose what is not a number
