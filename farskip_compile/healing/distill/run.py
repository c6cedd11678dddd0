# SPDX-License-Identifier: Apache-2.0
"""A run: the student, its teacher and its optimizer, taken from step to step.

In:    a model that can be rewired as asked, data, and a configuration.
Out:   `DistillRun`: `step` takes one optimizer step on all ranks; `save` and `resume` keep everything that changes;
       `end` puts the model's own forwards back.
Never: a step whose gradients are not finite.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from farskip_compile._compat.distributed import whole_graphs_under_ddp
from farskip_compile.errors import DistillationError
from farskip_compile.healing.causal.asking import Asking
from farskip_compile.healing.causal.batches import Batch, Feed, Position, as_batch
from farskip_compile.healing.causal.evaluate import Evaluation, HeldOut
from farskip_compile.healing.causal.fully_sharded import at_rest, recover
from farskip_compile.healing.causal.identity import checksum
from farskip_compile.healing.causal.losses import forward_kl, next_token_loss
from farskip_compile.healing.causal.ranks import Sharded, TrainingRanks
from farskip_compile.healing.causal.teacher import FrozenTeacher, TeacherFunction, evaluating
from farskip_compile.healing.causal.tensor_files import library
from farskip_compile.healing.distill.best import Best
from farskip_compile.healing.distill.config import AUTO, DistillConfig
from farskip_compile.healing.distill.optimizer import beta2_for, learning_rate_at, make_optimizer
from farskip_compile.healing.distill.snapshot import EPOCH, TrainingSnapshot
from farskip_compile.healing.distill.states import Progress, read_newest, write_state
from farskip_compile.healing.distill.stream import mismatch, stream_layers, weight_at
from farskip_compile.healing.distill.student import Student
from farskip_compile.healing.distill.teacher_cache import CachedTeacher


@dataclass(frozen=True)
class OptimizerStep:
    """One optimizer step; the same on all ranks."""

    loss: float
    """Mean over the targets of the step, before it is taken, in nats."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Targets of all ranks."""
    stream: float | None = None
    """The mismatch of the residual streams, without its weight; None: not part of the loss."""


@dataclass(frozen=True, eq=False)
class _Losses:
    """Of a batch, summed over its targets."""

    trained: torch.Tensor
    loss: float
    stream: float


class DistillRun:
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
        self.ranks = TrainingRanks(model, sharded)
        self.device = self.ranks.device
        self.taken, self.tokens = 0, 0
        self.about: dict[str, Any] = {"configuration": config.digest(), "number of ranks": self.ranks.size}
        if config.output is not None or config.teacher == "cache":
            library()  # a lack of it is an error now, and not at the first state
            self.about["model"] = checksum(model)
        at_rest(model)
        self.form = Student(model, config)
        self.optimizer = make_optimizer(model, config)
        self.pace = config
        """Whose steps and warm-up the learning rate follows: those of the run, or of a trial."""
        self.rate: float | None = config.learning_rate if config.learning_rate != AUTO else None
        self.beta2: float | None = None
        self.notes: dict[str, Any] = {}
        """What was found before the first step, in JSON; a resumed run has it from its state."""
        self.best = Best(model, config.patience, config.least_improvement)
        torch.manual_seed(config.seed + self.ranks.rank)
        try:
            self._prepare([as_batch(one, self.device) for one in held_out])
        except BaseException:
            recover(model)
            self.end()
            raise
        self.feed = Feed(data, self.device)
        self._snapshot = TrainingSnapshot(model, self.optimizer, self.best, self.ranks)
        self._last_state: Path | None = None
        self._is_checked = False

    def _prepare(self, batches: list[Batch]) -> None:
        config, model = self.config, self.model
        self.wrapped = self.ranks.wrap(self.form.compiled)
        with self._autocast(), evaluating(model), self.as_written():
            layers = stream_layers(model, batches[0]) if config.stream_weight else ()
            self.asking = Asking(model, batches[0], config.logits_memory, layers)
        self.student = self.asking.of(self.wrapped)
        self.teacher = self._make_teacher(batches) if config.objective == "kl" else None
        with self._autocast():
            self.evaluation = Evaluation(batches, self.teacher, self.ranks, config.logits_memory)

    @contextmanager
    def as_written(self) -> Iterator[None]:
        """Within a `with`, the model itself runs in its original form, with the weights that it has."""
        with self.form.as_written():
            yield
        at_rest(self.model)

    def end(self) -> None:
        """Put the model's own forwards back; the run can't go on then."""
        self.form.undo()

    def step(self) -> OptimizerStep:
        """Take one step.

        Raises:
            DistillationError: the loss or its gradients are not finite.
            ConfigError: the data has ended, or the teacher moves with the student.
        """
        batches = [next(self.feed) for _ in range(self.config.accumulate)]
        original = None  # what the teacher says before the first step
        if isinstance(self.teacher, FrozenTeacher) and not self._is_checked:
            with self._autocast():
                original = self.teacher.answer(batches[0])
        (tokens,) = self.ranks.sum(sum(batch.tokens for batch in batches))
        if not tokens:
            raise DistillationError("no token of this step's batches is a target", way_out="check labels and masks")
        loss = stream = 0.0
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            # gradients stay on their rank, for all but the last batch of a step
            with nullcontext() if last else getattr(self.wrapped, "no_sync", nullcontext)():
                parts = self._losses(batch)
                (parts.trained / tokens).backward()
            loss, stream = loss + parts.loss / tokens, stream + parts.stream / tokens
        at_rest(self.model)
        norm = self.ranks.finish_gradients(self.config.clip)
        loss, stream = self.ranks.sum(loss, stream)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DistillationError(
                f"step {self.taken + 1}: the loss is {loss}, the norm of its gradients {norm}",
                way_out="a smaller learning rate, a longer warm-up, or a lower clip",
            )
        assert self.rate is not None, "a run that tries rates takes no step before it has chosen"
        rate = self.rate * learning_rate_at(self.taken, self.pace)
        self.beta2 = self.beta2 or beta2_for(self.config, int(tokens))
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = rate, (self.config.betas[0], self.beta2)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.taken, self.tokens = self.taken + 1, self.tokens + int(tokens)
        if isinstance(self.teacher, FrozenTeacher) and original is not None:
            self._is_checked = True
            with self._autocast():
                self.teacher.check_frozen(batches[0], original)
        return OptimizerStep(loss, norm, rate, int(tokens), stream if self.config.stream_weight else None)

    def evaluate(self) -> HeldOut:
        """On the held-out batches."""
        with self._autocast(), whole_graphs_under_ddp():
            found = self.evaluation(lambda batch: self.student(batch).said, self.model)
        at_rest(self.model)
        return found

    def save(self) -> None:
        """Write a state, on all ranks; it and the one before it are kept."""
        assert self.config.output is not None
        position, best = self.feed.position, self.best
        progress = Progress(
            taken=self.taken,
            tokens=self.tokens,
            epoch=position.epoch,
            batches=position.taken,
            best_step=best.step,
            waited=best.waited,
            best_score=best.score if math.isfinite(best.score) else None,
            notes={**self.notes, "learning_rate": self.rate, "beta2": self.beta2},
        )
        tensors = self._snapshot.take(position)
        self._last_state = write_state(
            self.config.output, (self.about, progress), tensors, self.ranks, self._last_state
        )

    def resume(self) -> bool:
        """Continue from the last whole state that `save` wrote; False: there is none at all.

        Raises:
            ConfigError: it is of another run.
            DistillationError: there are states, and all are damaged.
        """
        assert self.config.output is not None
        found = read_newest(self.config.output, self.ranks, self.about, self._snapshot.check)
        if found is None:
            return False
        self._last_state, state = found
        self._snapshot.put_back(state)
        done = state.progress
        self.taken, self.tokens, self.notes = done.taken, done.tokens, dict(done.notes)
        self.rate, self.beta2 = self.notes.pop("learning_rate", self.rate), self.notes.pop("beta2", None)
        began = state.tensors.get(EPOCH)
        position = Position(done.epoch, done.batches, began.clone() if began is not None else None)
        self.feed = Feed(self.data, self.device, position)
        self._snapshot.put_back_generators(state)
        return True

    def _losses(self, batch: Batch) -> _Losses:
        memory, frozen = self.config.logits_memory, self.teacher if isinstance(self.teacher, FrozenTeacher) else None
        with self._autocast():
            original = frozen.answer(batch) if frozen is not None else None
            known = original.said if original is not None else self.teacher(batch) if self.teacher is not None else None
            with whole_graphs_under_ddp():
                answer = self.student(batch)
        if known is None:
            loss = next_token_loss(answer.said, batch.targets, memory)
        else:
            loss = forward_kl(answer.said, known, batch.targets, memory)
        trained = loss + answer.tie() if answer.hidden is not None else loss
        stream = 0.0
        if self.config.stream_weight:
            assert original is not None
            apart, tokens = mismatch(answer, original, batch.targets, self.ranks)
            trained = trained + weight_at(self.taken, self.pace) * tokens * apart
            stream = tokens * apart.item()
        return _Losses(trained, loss.item(), stream)

    def _make_teacher(self, held_out: Iterable[Batch]) -> TeacherFunction:
        if self.config.teacher == "copy":
            return FrozenTeacher(self.model, asking=self.asking, as_written=self.form.as_written)
        folder = self.config.cache_folder
        assert folder is not None
        original = FrozenTeacher(self.model, copied=False, asking=self.asking, as_written=self.form.as_written)
        about = {key: self.about[key] for key in ("model", "number of ranks")} | {"precision": self.config.precision}
        cached = CachedTeacher(folder, about, self.config.top_k, self.ranks.rank, self.config.logits_memory)
        generator = torch.get_rng_state()
        with self._autocast():
            cached.fill(itertools.chain(held_out, (as_batch(one, self.device) for one in self.data)), original)
        at_rest(self.model)
        torch.set_rng_state(generator)
        self.ranks.barrier()
        cached.refresh()
        return cached

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)
