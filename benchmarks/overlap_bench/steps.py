# SPDX-License-Identifier: Apache-2.0
"""The step of each phase on fixed inputs, the variants that run it, and their timing and comparison.

prefill    the forward pass of some sequences under no_grad
decode     one more token for each of many sequences, with the keys and values of those before in a cache of fixed
           size; under no_grad. The cache holds random values, the same for all variants, and every step writes the
           same position
training   forward, cross-entropy, and backward for the gradients of all parameters

Contract: all variants of a rank have equal weights; those that differ only in the compiler share one model. Every rank
makes the same calls. Times are seconds of this rank, from a barrier to the end of the call.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from hand_forms.chunked_form import ChunkedForm
from hand_forms.micro_batched_form import MicroBatchedForm
from hand_forms.overlapped_form import OverlappedForm
from torch.profiler import record_function

from farskip_compile import regional
from farskip_compile.costs import HardwareProfile
from farskip_compile.errors import FarSkipError
from farskip_compile.models import Decoder, FarSkipForm, ParallelConfig, build
from overlap_bench.cells import (
    BACKEND,
    BY_LAYER,
    CHUNKED,
    COMPUTE,
    DECODE,
    DROPLESS,
    EAGER,
    EXPERT_PARALLEL,
    EXTRA,
    EXTRA_RATIOS,
    HALVES,
    HAND,
    LAG2_HAND,
    MICRO,
    ORDER,
    PLAIN,
    PROFILED,
    REGIONAL,
    SELECTIONS,
    TIMED,
    TRAINING,
)
from overlap_bench.inductor import options_for

BACKWARD = "farskip benchmark: backward"
"""Name of the profiler's range over the backward pass."""


# The variants


@dataclass(frozen=True)
class Variant:
    """One way to run the model."""

    name: str
    model: Decoder
    """Holds the parameters, and after a training step their gradients."""
    run: Callable[..., torch.Tensor]
    """Called as the model is."""


def make_model(settings: Mapping[str, Any], group: dist.ProcessGroup, like: Decoder | None = None) -> Decoder:
    """The model of a cell, its matrices or experts spread over `group`; its weights are in the memory of `like`'s."""
    capacity = settings["capacity_factor"]
    mode = "dropless" if capacity is None else "padded"
    where = {"tp_group" if settings["tensor_parallel"] else "ep_group": group}
    parallel = ParallelConfig(**where, ep_mode=mode, capacity_factor=capacity)  # type: ignore[arg-type]
    overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in settings["overrides"].items()}
    model = build(settings["model"], seed=0, parallel=parallel, **overrides)
    if like is not None:
        for one, other in zip(model.parameters(), like.parameters(), strict=True):
            one.data = other.data
    return model


def fixed_variants(model: Decoder, settings: Mapping[str, Any], group: Any) -> tuple[list[Variant], dict[str, str]]:
    """Those that do not depend on the network; and which can't be made, and why."""
    plain = Variant(PLAIN, model, torch.compile(model, fullgraph=True))
    hand = Variant(HAND, model, torch.compile(FarSkipForm(model), fullgraph=True))
    made, missing = [plain, hand], {}
    if BY_LAYER not in left_out(settings):
        own = make_model(settings, group, model)
        for layer in own.layers:
            layer.compile(backend="inductor", fullgraph=True)
        made.append(Variant(BY_LAYER, own, own))
    for name, form in ((EAGER, OverlappedForm), (CHUNKED, ChunkedForm), (MICRO, MicroBatchedForm)):
        if name in left_out(settings):
            continue
        if name == MICRO and settings["phase"] == DECODE:
            missing[name] = "a cache is one of the whole batch"
            continue
        own = make_model(settings, group, model)  # the form may install hooks
        try:
            made.append(Variant(name, own, form(own)))
        except FarSkipError as error:
            missing[name] = str(error)
    return made, missing


def lag2_by_hand(model: Decoder) -> Variant:
    """What our "lag2" is compared with; not timed."""
    return Variant(LAG2_HAND, model, FarSkipForm(model, connectivity="lag2"))


def in_halves(model: Decoder) -> Variant:
    """What two micro-batches are compared with; not timed."""

    def run(ids: torch.Tensor) -> torch.Tensor:
        return torch.cat([model(half) for half in ids.split((len(ids) + 1) // 2)])

    return Variant(HALVES, model, run)


def profiled_variants(
    model: Decoder,
    profile: HardwareProfile,
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
    ratio: float,
    group: Any,
) -> list[Variant]:
    """Those that are scheduled by `profile`; `options` are further ones of our backend."""

    def compiled(name: str) -> Variant:
        if name in REGIONAL:
            own = make_model(settings, group, model)  # its layers are compiled in place
            regional(own, **{**options, **REGIONAL[name], "profile": profile})
            return Variant(name, own, own)
        if name in BACKEND:
            ours = {**options, **BACKEND[name], "profile": profile}
            return Variant(name, model, torch.compile(model, backend="farskip", fullgraph=True, options=ours))
        theirs = options_for(name, profile, options.get("load_imbalance", 1.0))
        return Variant(name, model, torch.compile(model, fullgraph=True, options=theirs))

    return [compiled(name) for name in PROFILED if name not in left_out(settings, ratio)]


def left_out(settings: Mapping[str, Any], ratio: float = EXTRA_RATIOS[0]) -> set[str]:
    """Variants that a cell has not."""
    if settings["selection"]:
        return {*TIMED} - {*SELECTIONS[settings["selection"]]}
    whole = settings["capacity_factor"] is None and settings["phase"] != DECODE
    none = EXPERT_PARALLEL if settings["tensor_parallel"] else ()
    others = {*TIMED} - {*ORDER}
    return {*others, *none, *(() if whole else DROPLESS), *(() if ratio in EXTRA_RATIOS else EXTRA)}


def compute_alone(settings: Mapping[str, Any], group: dist.ProcessGroup, like: Decoder) -> Variant:
    """The hand-written form, compiled by Inductor, over a group that sends nothing; with the weights of `like`."""
    model = make_model(settings, group, like)
    return Variant(COMPUTE, model, torch.compile(FarSkipForm(model), fullgraph=True))


# The step


class Step:
    """The step of a cell.

    Args:
        settings: of the cell.
        rank: of this process. Each has its own tokens, except under tensor parallelism.
        model: like those of the variants; needed to make a cache.
    """

    def __init__(self, settings: Mapping[str, Any], rank: int, model: Decoder | None = None) -> None:
        source = 0 if settings["tensor_parallel"] else rank
        generator = torch.Generator().manual_seed(1000 + source)
        shape, vocabulary = (settings["batch"], settings["tokens"]), settings["overrides"]["vocab_size"]
        self.phase: str = settings["phase"]
        self.ids = torch.randint(0, vocabulary, shape, generator=generator)
        self.labels = torch.randint(0, vocabulary, (shape[0] * shape[1],), generator=generator)
        self.cached: int = settings["cached"]
        self.cache = None
        if self.phase == DECODE:
            assert model is not None
            # some room after the decoded token, as in a cache of fixed size
            self.cache = model.new_cache(shape[0], self.cached + max(1, self.cached // 3))
            for memory in (*self.cache.keys, *self.cache.values):
                memory.copy_(torch.randn(memory.shape, generator=generator))

    def __call__(self, variant: Variant) -> torch.Tensor:
        """Logits [B, T, vocabulary], or the loss. Gradients are given up: those of all variants together have no
        room."""
        output = self._run(variant)
        if self.phase == TRAINING:
            variant.model.zero_grad(set_to_none=True)
        return output

    def _run(self, variant: Variant) -> torch.Tensor:
        if self.phase != TRAINING:
            return self.forward(variant)
        loss = F.cross_entropy(variant.run(self.ids).flatten(0, 1), self.labels)
        with record_function(BACKWARD):
            loss.backward()
        return loss.detach()

    def forward(self, variant: Variant) -> torch.Tensor:
        """Logits, without gradients."""
        with torch.no_grad():
            if self.cache is None:
                return variant.run(self.ids)
            self.cache.position.fill_(self.cached)
            return variant.run(self.ids, cache=self.cache)

    def resident_bytes(self, model: Decoder) -> int:
        """Bytes allocated before and after the step: parameters, buffers, and the cache."""
        cached = (*self.cache.keys, *self.cache.values) if self.cache is not None else ()
        return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), *cached))

    def results(self, variant: Variant) -> dict[str, torch.Tensor]:
        """Logits; or loss and gradients by parameter."""
        output = self._run(variant)
        if self.phase != TRAINING:
            return {"logits": output.clone()}
        gradients = {name: p.grad for name, p in variant.model.named_parameters() if p.grad is not None}
        variant.model.zero_grad(set_to_none=True)
        return {"loss": output, **gradients}


def compare(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The largest relative error of all tensors, |one - other| / |other| in Euclidean norms."""
    if one.keys() != other.keys():
        raise AssertionError(f"only one of two variants has {sorted(one.keys() ^ other.keys())}")
    errors = {}
    for name, wanted in other.items():
        norm = torch.linalg.vector_norm(wanted.double()).item()
        errors[name] = torch.linalg.vector_norm(one[name].double() - wanted.double()).item() / (norm or 1.0)
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
    return {"tensors": len(errors), "worst": worst, "error": errors[worst]}


# Timing


def interleaved(
    runs: Mapping[str, Callable[[], Any]], repetitions: int, *, least: int = 0, budget: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of each run, interleaved; each of at most `repetitions` starts with another one.

    After `budget` seconds none but the `least` are made, by the clock of rank 0, so that all ranks stop together.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    gc.collect()
    gc.disable()
    begun = time.perf_counter()
    for repetition in range(repetitions):
        if repetition >= least and budget < math.inf:
            over = [time.perf_counter() - begun > budget]
            dist.broadcast_object_list(over, src=0)
            if over[0]:
                break
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            dist.barrier()
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    gc.enable()
    return seconds


def processor_seconds() -> tuple[float, float, float]:
    """Wall time, and user time so far of this process and of all processes of the machine, on all cores."""
    machine = 0.0
    with contextlib.suppress(OSError):  # not Linux
        user, nice = Path("/proc/stat").read_text().split()[1:3]
        machine = (int(user) + int(nice)) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), os.times().user, machine
