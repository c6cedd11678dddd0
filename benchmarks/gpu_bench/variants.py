# SPDX-License-Identifier: Apache-2.0
"""The ways to compile that are compared, and one step of the compiled model.

In:    a model, the name of a variant, a hardware profile that has the figures of the link.
Out:   what `torch.compile` gives, and the context in which its first step has to run.
Never: lets variants differ in anything but the compiler; they share the model and its weights.

plain              torch.compile out of the box
inductor overlap   with Inductor's own overlap scheduling of the graph
inductor passes    with Inductor's three passes on kernels that its configuration recommends
none               our backend, connectivity "none": the same function, scheduled
full               our backend, connectivity "full": rewired and scheduled
full, pieces       the same, exchanges cut in pieces where the estimate says that it pays
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

import farskip_compile
from farskip_compile.costs import HardwareProfile
from farskip_compile.models import Decoder, ParallelConfig, build

PLAIN, OVERLAP, PASSES = "plain", "inductor overlap", "inductor passes"
NONE, FULL, PIECES = "none", "full", "full, pieces"
OURS: dict[str, dict[str, Any]] = {
    NONE: {"connectivity": "none"},
    FULL: {"connectivity": "full"},
    PIECES: {"connectivity": "full", "pieces": "auto"},
}
"""Options of our backend."""
PREFILL, TRAINING = "prefill", "training"
PHASES = (PREFILL, TRAINING)

Run = Callable[[], torch.Tensor]


def model_of(overrides: Mapping[str, Any], device: str, dtype: str, mode: str = "none", group: Any = None) -> Decoder:
    """A model, its experts spread over `group` in the way `mode`; "tp": its matrices; "none": this process has all."""
    how: dict[str, Any] = {}
    if mode == "tp":
        how = {"tp_group": group}
    elif mode != "none":
        how = {"ep_group": group, "ep_mode": mode}
    if mode == "padded":
        how["capacity_factor"] = 1.25
    parallel = ParallelConfig(**how)
    known = dict(overrides)
    preset = known.pop("preset", "deepseek_v3")
    return build(preset, device=device, dtype=getattr(torch, dtype), parallel=parallel, **known)


def ids_of(shape: tuple[int, int], overrides: Mapping[str, Any], device: str) -> torch.Tensor:
    """The same token ids each time."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, overrides["vocab_size"], shape, generator=generator).to(device)


def compiled(
    model: Decoder, name: str, profile: HardwareProfile | None = None, mode: str | None = None, **more: Any
) -> tuple[Any, contextlib.AbstractContextManager[None]]:
    """See the module's contract; `mode` is one of Inductor's, `more` are options of ours."""
    if name in OURS:
        # the other ranks of an emulated group never come to compare
        options = {"check_order": False, "profile": profile, **OURS[name], **more}
        ours = farskip_compile.backend(mode=mode, **options)
        return torch.compile(model, fullgraph=True, backend=ours), contextlib.nullcontext()
    if name == PLAIN:
        return torch.compile(model, fullgraph=True, mode=mode), contextlib.nullcontext()
    # as in the benchmark of networks: with our estimates, so that neither is at a disadvantage
    from overlap_bench.inductor import device_figures, options_for

    assert profile is not None
    theirs = torch.compile(model, fullgraph=True, options=options_for(name, profile))
    return theirs, device_figures(profile)


def step_of(phase: str, model: Decoder, run: Any, ids: torch.Tensor) -> Run:
    """One step: a forward pass without gradients, or one with a backward pass."""

    def prefill() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = run(ids)
        return found

    def training() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        found: torch.Tensor = run(ids)
        found.float().square().mean().backward()
        return found.detach()

    return prefill if phase == PREFILL else training


def known_profile(device: str, name: str) -> HardwareProfile:
    """The profile that comes with the package for this device."""
    from farskip_compile.costs import default_profile

    return default_profile(device, name)
