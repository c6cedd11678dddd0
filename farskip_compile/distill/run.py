"""A run: the student, its teacher and its optimizer, taken from step to step.

In:    a model that can be rewired as asked, data, and a configuration.
Out:   `Run`: `step` takes one optimizer step on all ranks; `save` and `restore` keep everything that changes. AdamW,
       with a linear warm-up and then a cosine (paper section 3.1).
Never: a step whose gradients are not finite.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from farskip_compile._compat.distributed import whole_graphs_under_ddp
from farskip_compile.backend import backend
from farskip_compile.distill.batches import Batch, Feed, Position, as_batch, caller
from farskip_compile.distill.checkpoints import load_state, save_state
from farskip_compile.distill.config import DistillConfig
from farskip_compile.distill.evaluate import Best, Evaluation, HeldOut
from farskip_compile.distill.losses import forward_kl, next_token_loss
from farskip_compile.distill.ranks import Ranks, Sharded
from farskip_compile.distill.teacher import (
    CachedTeacher,
    FrozenTeacher,
    Teacher,
    checksum,
)
from farskip_compile.errors import ConfigError, DistillationError

FUSED = ("cpu", "cuda", "xpu")
"""Devices for which torch has a fused AdamW."""


def learning_rate_at(step: int, config: DistillConfig) -> float:
    """Fraction of the learning rate that step `step`, counted from 0, uses."""
    if step < config.warm_up_steps:
        return (step + 1) / (config.warm_up_steps + 1)
    done = (step - config.warm_up_steps) / max(config.steps - config.warm_up_steps, 1)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    return config.final_learning_rate + (1.0 - config.final_learning_rate) * cosine


def make_optimizer(
    model: nn.Module, config: DistillConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW over all parameters that require a gradient; matrices decay, vectors do not.

    Raises:
        ConfigError: no parameter requires a gradient.
    """
    trained = [value for value in model.parameters() if value.requires_grad]
    if not trained:
        raise ConfigError("no parameter of the model requires a gradient", way_out="model.requires_grad_(True)")
    groups = [
        {"params": [value for value in trained if value.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [value for value in trained if value.dim() < 2], "weight_decay": 0.0},
    ]
    # one kernel for a whole group: without it the update holds temporaries as large as the parameters. It does not
    # accept DTensors together with other tensors
    fused = all(type(value) is nn.Parameter and value.device.type in FUSED for value in trained)
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], config.learning_rate, config.betas, fused=fused
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_at(step, config))


@dataclass(frozen=True)
class Step:
    """One optimizer step; the same on all ranks."""

    loss: float
    """Mean over the targets of the step, before it is taken, in nats."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Targets of all ranks."""


class Run:
    """See the module. The model is trained in place; the held-out batches are traversed once."""

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        held_out: Iterable[Any],
        config: DistillConfig,
        sharded: Sharded | None = None,
    ) -> None:
        self.model, self.data, self.config = model, data, config
        self.ranks = Ranks(model, sharded)
        self.device = self.ranks.device
        self.taken, self.tokens = 0, 0
        self.about = {"configuration": config.digest(), "number of ranks": self.ranks.size, "model": checksum(model)}
        compiled: Any = torch.compile(model, backend=backend(config.backend_config()), fullgraph=True)
        self.wrapped = self.ranks.wrap(compiled)
        self.optimizer, self.scheduler = make_optimizer(model, config)
        self.best = Best(model, config.patience, config.least_improvement)
        torch.manual_seed(config.seed + self.ranks.rank)
        batches = [as_batch(one, self.device) for one in held_out]
        self.teacher = self._make_teacher(batches) if config.objective == "kl" else None
        with self._autocast():
            self.evaluation = Evaluation(batches, self.teacher, self.ranks)
        self.feed = Feed(data, self.device)
        self._is_checked = False

    def step(self) -> Step:
        """Take one step.

        Raises:
            DistillationError: the loss or its gradients are not finite.
            ConfigError: the data has ended, or the teacher moves with the student.
        """
        batches = [next(self.feed) for _ in range(self.config.accumulate)]
        original = None  # the teacher's logits before the first step
        if isinstance(self.teacher, FrozenTeacher) and not self._is_checked:
            with self._autocast():
                original = self.teacher(batches[0])
        (tokens,) = self.ranks.sum(sum(batch.tokens for batch in batches))
        if not tokens:
            raise DistillationError("no token of this step's batches is a target", way_out="check labels and masks")
        loss = 0.0
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            # gradients stay on their rank, for all but the last batch of a step
            with nullcontext() if last else getattr(self.wrapped, "no_sync", nullcontext)():
                part = self._loss(batch) / tokens
                part.backward()
            loss += part.item()
        norm = self.ranks.finish_gradients(self.config.clip)
        (loss,) = self.ranks.sum(loss)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DistillationError(
                f"step {self.taken + 1}: the loss is {loss}, the norm of its gradients {norm}",
                way_out="a smaller learning rate, a longer warm-up, or a lower clip",
            )
        rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.taken, self.tokens = self.taken + 1, self.tokens + int(tokens)
        if isinstance(self.teacher, FrozenTeacher) and original is not None:
            self._is_checked = True
            with self._autocast():
                self.teacher.check_frozen(batches[0], original)
        return Step(loss, norm, rate, int(tokens))

    def evaluate(self) -> HeldOut:
        """On the held-out batches."""
        with self._autocast(), whole_graphs_under_ddp():
            return self.evaluation(caller(self.wrapped, self.model), self.model)

    def save(self) -> None:
        """Write a state, on all ranks."""
        assert self.config.output is not None
        state, best = self.optimizer.state, self.best.weights
        tensors = {
            name: {"value": value.detach(), "optimizer": state.get(value, {}), "best": best.get(name)}
            for name, value in (*self.model.named_parameters(), *self.model.named_buffers())
        }
        own = {
            "about": self.about,
            "taken": self.taken,
            "tokens": self.tokens,
            "scheduler": self.scheduler.state_dict(),
            "best": self.best.state(),
            "position": vars(self.feed.position),
            "generator": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        save_state(self.config.output, self.taken, tensors, own, self.ranks)

    @torch.no_grad()
    def restore(self, path: Any) -> None:
        """Continue from a state that `save` wrote.

        Raises:
            ConfigError: it is of another run.
        """
        tensors, own = load_state(path, self.ranks, self.about)
        for name, value in (*self.model.named_parameters(), *self.model.named_buffers()):
            value.copy_(tensors[name]["value"])
        names = {value: name for name, value in self.model.named_parameters()}
        trained = [value for group in self.optimizer.param_groups for value in group["params"]]
        states = {place: tensors[names[value]]["optimizer"] for place, value in enumerate(trained)}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": {k: v for k, v in states.items() if v}, "param_groups": groups})
        self.taken, self.tokens = own["taken"], own["tokens"]
        self.scheduler.load_state_dict(own["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        best = {name: kept["best"] for name, kept in tensors.items() if kept["best"] is not None}
        self.best.load(own["best"], best)
        self.feed = Feed(self.data, self.device, Position(**own["position"]))
        torch.set_rng_state(own["generator"])
        if own["cuda"]:
            torch.cuda.set_rng_state_all(own["cuda"])

    def _loss(self, batch: Batch) -> torch.Tensor:
        with self._autocast():
            known = self.teacher(batch) if self.teacher is not None else None
            with whole_graphs_under_ddp():
                logits = caller(self.wrapped, self.model)(batch)
        if known is None:
            return next_token_loss(logits, batch.targets)
        return forward_kl(logits, known, batch.targets)

    def _make_teacher(self, held_out: Iterable[Batch]) -> Teacher:
        if self.config.teacher == "copy":
            return FrozenTeacher(self.model)
        folder = self.config.cache_folder
        assert folder is not None
        original = FrozenTeacher(self.model, copied=False)
        about = {key: self.about[key] for key in ("model", "number of ranks")} | {"precision": self.config.precision}
        cached = CachedTeacher(folder, about, self.config.top_k, self.ranks.rank)
        generator = torch.get_rng_state()
        with self._autocast():
            cached.fill(itertools.chain(held_out, (as_batch(one, self.device) for one in self.data)), original)
        torch.set_rng_state(generator)
        self.ranks.barrier()
        cached.refresh()
        return cached

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)
