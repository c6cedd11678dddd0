"""What each rank of `overlap.py` runs: one model in several variants, their steps in turn, and their results compared.

Contract: the functions here are called on every rank with the same arguments but `rank`, inside a process of their
own; they return plain data. Times are seconds of this rank, from a barrier to the end of the step.

The step of a phase:
    prefill    the forward pass under no_grad
    training   forward, cross-entropy, and backward for the gradients of all parameters
Its variants:
    plain          the plain model, compiled by Inductor: torch.compile as everybody uses it
    none           the plain model by our backend, connectivity "none": scheduled, not rewired
    full           the same, connectivity "full": rewired and scheduled
    hand-written   the FarSkip form written by hand, compiled by Inductor
    compute        like plain, with collectives that copy instead of sending: the compute of the step
    communication  the collectives of the step one after another, and nothing else
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from local_exchange import LocalExchange, local_exchange

from farskip_compile import clear_schedules, last_schedules
from farskip_compile.costs import HardwareProfile
from farskip_compile.models import Decoder, FarSkipForm, ParallelConfig, build
from farskip_compile.profiling import kernels_visible, record

PREFILL, TRAINING = "prefill", "training"
PLAIN, NONE, FULL, HAND, COMPUTE, COMMUNICATION = (
    "plain",
    "none",
    "full",
    "hand-written",
    "compute",
    "communication",
)
COMPARED = ((NONE, PLAIN), (FULL, HAND))
"""(variant, what it must equal)."""

Settings = Mapping[str, Any]
"""Of the model: `model` (its name), `tokens` per rank, `capacity_factor`, `overrides` (fields of `ModelConfig`)."""
Exchange = tuple[int, str]
"""Numbers in an all-to-all, and their type."""


@dataclass(frozen=True)
class Variant:
    """One way to run the model."""

    name: str
    model: Decoder
    """Holds the parameters, and after a training step their gradients."""
    compiled: Callable[[torch.Tensor], torch.Tensor]


class Step:
    """The step of a phase on fixed token ids; each rank has its own.

    Args:
        phase: `PREFILL` or `TRAINING`.
        rank: of this process.
        tokens: per rank.
        vocabulary: number of token ids.
    """

    def __init__(self, phase: str, rank: int, tokens: int, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(1000 + rank)
        self.training = phase == TRAINING
        self.ids = torch.randint(0, vocabulary, (1, tokens), generator=generator)
        self.labels = torch.randint(0, vocabulary, (tokens,), generator=generator)

    def __call__(self, variant: Variant) -> torch.Tensor:
        """Logits [1, T, vocabulary], or the loss."""
        if not self.training:
            with torch.no_grad():
                return variant.compiled(self.ids)
        variant.model.zero_grad(set_to_none=True)
        loss = F.cross_entropy(variant.compiled(self.ids).flatten(0, 1), self.labels)
        loss.backward()
        return loss.detach()

    def results(self, variant: Variant) -> dict[str, torch.Tensor]:
        """Logits; or loss and gradients by parameter."""
        output = self(variant)
        if not self.training:
            return {"logits": output.clone()}
        gradients = {name: p.grad for name, p in variant.model.named_parameters() if p.grad is not None}
        return {"loss": output.clone(), **{name: gradient.clone() for name, gradient in gradients.items()}}


def calibrate(rank: int, settings: Settings, phase: str, repetitions: int) -> dict[str, Any]:
    """The compute of a step, and which collectives it has: `seconds` of each repetition, `exchanges`."""
    _join()
    group = local_exchange()
    step, variant = _step(settings, phase, rank), _compute(settings, group)
    with kernels_visible():
        step(variant)
    exchanges = _exchanges(group, lambda: step(variant))
    seconds = _interleaved({COMPUTE: lambda: step(variant)}, repetitions)[COMPUTE]
    return _leave({"seconds": seconds, "exchanges": exchanges})


def probe(rank: int, exchanges: Sequence[Exchange], repetitions: int) -> list[float]:
    """Seconds of all exchanges, one after another."""
    _join()
    run = _communication(exchanges)
    run()
    return _leave(_interleaved({COMMUNICATION: run}, repetitions)[COMMUNICATION])


def measure(
    rank: int,
    settings: Settings,
    phase: str,
    options: Mapping[str, Any],
    exchanges: Sequence[Exchange],
    repetitions: int,
    traces: str | None,
) -> dict[str, Any]:
    """All variants in turn: `seconds` of each, `checks` of their results, `exposed` communication, `estimates`, `busy`.

    Args:
        rank: of this process.
        settings: of the model.
        phase: which step.
        options: for our backend, beside the connectivity; its `profile` as JSON.
        exchanges: from `calibrate`.
        repetitions: of each variant.
        traces: folder for Chrome traces; None: they are not kept.
    """
    _join()
    world = dist.group.WORLD
    assert world is not None
    step = _step(settings, phase, rank)
    variants = [*_compared(settings, world, options), _compute(settings, local_exchange())]
    built, estimates = {}, {}
    with kernels_visible():
        for variant in variants:
            clear_schedules()
            start = time.perf_counter()
            step(variant)
            built[variant.name] = time.perf_counter() - start
            if variant.name in (NONE, FULL):
                estimates[variant.name] = [schedule.to_json() for schedule in last_schedules()]
            if rank == 0:
                print(f"{phase}: {variant.name} compiled in {built[variant.name]:.0f} s")
            dist.barrier()
    results = {variant.name: step.results(variant) for variant in variants if variant.name != COMPUTE}
    checks = [compare(results[one], results[other]) for one, other in COMPARED]
    del results

    runs = {variant.name: (lambda variant=variant: step(variant)) for variant in variants}
    before = _processor_seconds()
    seconds = _interleaved({**runs, COMMUNICATION: _communication(exchanges)}, repetitions)
    busy = [now - then for now, then in zip(_processor_seconds(), before, strict=True)]
    exposed = {}
    for variant in variants:
        if variant.name != COMPUTE:
            path = None if traces is None else Path(traces) / f"{phase}-{variant.name}-rank{rank}.json.gz"
            dist.barrier()
            report = record(runs[variant.name], path=path, warmup=0).ranks[0]
            exposed[variant.name] = {
                "communication": report.communication_ns / 1e9,
                "exposed": report.exposed_ns / 1e9,
                "compute": report.compute_ns / 1e9,
            }
    found = {"seconds": seconds, "compile_seconds": built, "checks": checks, "exposed": exposed, "estimates": estimates}
    return _leave({**found, "busy": busy})


def compare(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """How far results are apart: the worst of all tensors by |one - other| / |other|, Euclidean norms."""
    if one.keys() != other.keys():
        raise AssertionError(f"only one of two variants has {sorted(one.keys() ^ other.keys())}")
    errors = {}
    for name, wanted in other.items():
        norm = torch.linalg.vector_norm(wanted.double()).item()
        errors[name] = torch.linalg.vector_norm(one[name].double() - wanted.double()).item() / (norm or 1.0)
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
    return {"tensors": len(errors), "worst": worst, "error": errors[worst]}


# Parts


def _join() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))


def _leave(result: Any) -> Any:
    dist.barrier()  # a rank that leaves early would break the connections of the others
    dist.destroy_process_group()
    return result


def _step(settings: Settings, phase: str, rank: int) -> Step:
    return Step(phase, rank, settings["tokens"], settings["overrides"]["vocab_size"])


def _model(settings: Settings, group: dist.ProcessGroup) -> Decoder:
    parallel = ParallelConfig(ep_group=group, ep_mode="padded", capacity_factor=settings["capacity_factor"])
    return build(settings["model"], seed=0, parallel=parallel, **_overrides(settings))


def _overrides(settings: Settings) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings["overrides"].items()}


def _compared(settings: Settings, group: dist.ProcessGroup, options: Mapping[str, Any]) -> list[Variant]:
    ours = {**options, "profile": HardwareProfile.from_json(options["profile"])}
    variants = []
    for name in (PLAIN, NONE, FULL, HAND):
        model = _model(settings, group)
        if name in (NONE, FULL):
            compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"connectivity": name, **ours})
        else:
            compiled = torch.compile(FarSkipForm(model) if name == HAND else model, fullgraph=True)
        variants.append(Variant(name, model, compiled))
    return variants


def _compute(settings: Settings, group: dist.ProcessGroup) -> Variant:
    model = _model(settings, group)
    return Variant(COMPUTE, model, torch.compile(model, fullgraph=True))


def _exchanges(group: LocalExchange, run: Callable[[], Any]) -> list[Exchange]:
    group.sent.clear()
    run()
    return [(numel, str(dtype).removeprefix("torch.")) for numel, dtype in group.sent]


def _communication(exchanges: Sequence[Exchange]) -> Callable[[], None]:
    buffers = [(torch.zeros(n, dtype=getattr(torch, t)), torch.empty(n, dtype=getattr(torch, t))) for n, t in exchanges]

    def run() -> None:
        for sent, received in buffers:
            dist.all_to_all_single(received, sent)

    return run


def _processor_seconds() -> tuple[float, float, float]:
    """So far: by the clock, of this process, of all processes of the machine; user time only, on all cores."""
    machine = 0.0
    with contextlib.suppress(OSError):  # not Linux
        user, nice = Path("/proc/stat").read_text().split()[1:3]
        machine = (int(user) + int(nice)) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), os.times().user, machine


def _interleaved(runs: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each run; all take turns, and who is first changes, so that a slow moment slows all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    gc.collect()
    gc.disable()
    for repetition in range(repetitions):
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            dist.barrier()
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    gc.enable()
    return seconds
