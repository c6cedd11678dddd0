# SPDX-License-Identifier: Apache-2.0
"""What a healing will take: tokens, hours, memory and disk, before it begins.

In:    material, settings, and the steps of training.
Out:   `HealEstimate`, plain data, which says on how many steps of the model it rests. `shortage` names what does not
       fit.
Never: changes a parameter, keeps a gradient, or writes anything. Promises: the model runs as it is written, not
       compiled, and compiling takes minutes; activations are measured on an accelerator only; other programs may want
       the machine, too.

Steps:
1. One step of the loss to warm up, then `MEASURED`: the teacher's forward, the student's, and its backward.
2. AdamW on numbers of its own, `SCRATCH` at most, and from that for all of them.
3. Count: steps of training and of trials; forwards over both halves of the held-out text; forwards of the fold.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from farskip_compile.base.json_files import JsonRecord
from farskip_compile.errors import ConfigError
from farskip_compile.healing.causal.asking import Asking
from farskip_compile.healing.causal.batches import Batch, Feed
from farskip_compile.healing.causal.losses import forward_kl
from farskip_compile.healing.causal.teacher import FrozenTeacher, evaluating
from farskip_compile.healing.distill.config import AUTO, DistillConfig
from farskip_compile.healing.distill.stream import stream_layers
from farskip_compile.healing.distill.trials import FACTORS
from farskip_compile.healing.distill.trials import SHARE as TRIED
from farskip_compile.healing.heal.material import Material
from farskip_compile.healing.heal.settings import HealSettings
from farskip_compile.tools.prepare.preserve_state import state_kept
from farskip_compile.tools.prepare.writes import Writes

MEASURED = 3
"""Steps that are timed."""
SCRATCH = 2**24
"""Numbers on which AdamW is timed."""
ROWS = 4
"""That are judged."""
STATES = 2
"""That a run keeps on disk."""
CHUNKS = 4
"""Tensors as large as the logits that are computed at a time."""


@dataclass(frozen=True)
class HealEstimate(JsonRecord):
    """Seconds, bytes, and what they rest on."""

    parameters: int
    trained: int
    tokens: int
    """Targets to train on."""
    steps: int
    step_seconds: float
    """Of one optimizer step, with AdamW."""
    adamw_seconds: float
    measured: int
    seconds: dict[str, float]
    """By what they are spent on."""
    memory: dict[str, int]
    """Bytes on the device, by what they hold."""
    host: dict[str, int]
    """The same on the CPU."""
    disk: dict[str, int]
    device: str
    device_free: int | None
    """Bytes, with those of the model; None: not known."""
    disk_free: int

    @property
    def hours(self) -> float:
        """All of it."""
        return sum(self.seconds.values()) / 3600

    def shortage(self) -> list[str]:
        """What does not fit, in words."""
        found = []
        shared = self.device == "cpu"
        needed = sum(self.memory.values()) + (sum(self.host.values()) if shared else 0)
        if self.device_free is not None and needed > self.device_free:
            found.append(f"memory: {needed / 1e9:.1f} GB are needed, {self.device_free / 1e9:.1f} GB are free")
        if sum(self.disk.values()) > self.disk_free:
            needed = sum(self.disk.values())
            found.append(f"disk: {needed / 1e9:.1f} GB are needed, {self.disk_free / 1e9:.1f} GB are free")
        return found


def estimate(material: Material, settings: HealSettings, config: DistillConfig, rows: int) -> HealEstimate:
    """Measure and count.

    Args:
        material: the model stays as it is.
        settings: the folder, and the batch.
        config: how many steps, and what is done before them.
        rows: that are rewired, or candidates.

    Raises:
        ConfigError: streams are to be matched, and the layers can't be told.
    """
    model, train = material.model, material.train
    trained = [value for value in model.parameters() if value.requires_grad]
    numbers = sum(value.numel() for value in trained)
    weights = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
    ours = sum(value.nbytes for value in trained)
    free = _free(material.device)
    forward, step, activations, logits = _measure(material, config)  # 1
    adamw = _adamw(trained)  # 2
    per_step = step * config.accumulate + adamw
    a_batch = settings.batch_size
    halves = [half.sequences / a_batch * forward for half in (material.choosing, material.judging)]
    evaluations = config.steps // config.evaluate_every + 3 + len(FACTORS) * (config.learning_rate == AUTO)
    tokens = config.steps * config.accumulate * a_batch * train.counts.targets / train.counts.sequences
    seconds = {"training": config.steps * per_step}  # 3
    if config.learning_rate == AUTO:
        seconds["learning rate"] = len(FACTORS) * max(1, round(TRIED * config.steps)) * per_step
    if config.fold:
        # a row is judged for what it reads and for what it adds, each from where it stands: half a forward
        seconds["fold"] = 2 * config.fold_batches * forward + rows * halves[0]
    seconds["damage by row"] = (rows + 2) * halves[0]
    seconds["evaluations"] = evaluations * halves[0] + (ROWS + 2) * halves[1]
    memory = {
        "weights": weights,
        "gradients": ours,
        "AdamW": 2 * ours,
        "logits": CHUNKS * min(logits, config.logits_memory),
    }
    if config.teacher == "copy":
        memory["teacher"] = weights
    if activations is not None:
        memory["activations"] = activations
    return HealEstimate(
        parameters=sum(value.numel() for value in model.parameters()),
        trained=numbers,
        tokens=round(tokens),
        steps=config.steps,
        step_seconds=per_step,
        adamw_seconds=adamw,
        measured=MEASURED,
        seconds=seconds,
        memory=memory,
        host={"best weights": ours},
        disk={"checkpoint": weights, "states": STATES * 4 * ours, **({"fold": ours} if config.fold else {})},
        device=material.device.type,
        device_free=free + weights if free is not None else None,
        disk_free=_room(settings.out),
    )


def _measure(material: Material, config: DistillConfig) -> tuple[float, float, int | None, int]:
    """Seconds of a forward and of a batch with its backward, and bytes of activations and of a batch's logits."""
    model, device = material.model, material.device
    writes = Writes(model.parameters())
    with torch.random.fork_rng(), state_kept([model]), ExitStack() as stack:
        stack.callback(writes.undo)
        feed = Feed(material.train, device)
        batches = [next(feed) for _ in range(MEASURED + 1)]
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            with evaluating(model):
                layers = _stream_layers(model, batches[0]) if config.stream_weight else ()
                asking = Asking(model, batches[0], config.logits_memory, layers)
            teacher = FrozenTeacher(model, copied=False, asking=asking)
            student = asking.of(model)
            before = _peak(device)
            with evaluating(model), torch.no_grad():
                vocabulary = student(batches[0]).logits.shape[-1]
            logits = 4 * batches[0].inputs["input_ids"].numel() * vocabulary
            forward = whole = 0.0
            for number, batch in enumerate(batches):
                began = _now(device)
                with nullcontext() if number else writes:  # which slows it down: the first one is not counted
                    known = teacher(batch)
                    said = _now(device)
                    loss = forward_kl(student(batch).said, known, batch.targets, config.logits_memory)
                    loss.backward()
                ended = _now(device)
                if number:
                    forward, whole = forward + said - began, whole + ended - began
        after = _peak(device)
        model.zero_grad(set_to_none=True)
    gradients = sum(value.nbytes for value in model.parameters() if value.requires_grad)
    activations = max(0, after - before - gradients) if before is not None and after is not None else None
    return forward / MEASURED, whole / MEASURED, activations, logits


def _stream_layers(model: nn.Module, batch: Batch) -> Sequence[nn.Module]:
    """The layers whose streams are matched; that they can't be told is known now, and not after hours."""
    try:
        return stream_layers(model, batch)
    except ConfigError as error:
        raise ConfigError(error.reason, way_out="--stream-weight 0") from error


def _adamw(trained: list[nn.Parameter]) -> float:
    """Seconds of a step of AdamW, from one on fewer numbers."""
    count = sum(value.numel() for value in trained)
    like = trained[0]
    scratch = nn.Parameter(torch.zeros(min(count, SCRATCH), dtype=like.dtype, device=like.device))
    scratch.grad = torch.ones_like(scratch)
    optimizer = torch.optim.AdamW([scratch], 0.0)
    optimizer.step()
    began = _now(like.device)
    optimizer.step()
    return (_now(like.device) - began) * count / scratch.numel()


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _peak(device: torch.device) -> int | None:
    """Most bytes that were in use since the last call; None: not known."""
    if device.type == "cpu":
        return None
    try:
        most = torch.accelerator.max_memory_allocated(device)
        torch.accelerator.reset_peak_memory_stats(device)
    except (RuntimeError, NotImplementedError):  # not counted for this kind of accelerator
        return None
    return most


def _free(device: torch.device) -> int | None:
    if device.type != "cpu":
        try:
            torch.accelerator.empty_cache()
            return torch.accelerator.get_memory_info(device)[0]
        except (RuntimeError, NotImplementedError):
            return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # another system than Linux
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _room(out: Path) -> int:
    """Bytes free where `out` is, or will be."""
    place = next((one for one in (out.resolve(), *out.resolve().parents) if one.exists()), Path("/"))
    return shutil.disk_usage(place).free
