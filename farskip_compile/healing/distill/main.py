# SPDX-License-Identifier: Apache-2.0
"""`self_distill`: a trained model learns to be itself under another connectivity (FCSD, arXiv 2511.11505, section 2.2).

In:    a causal model with trained weights, batches of token ids, a configuration.
Out:   the same model with other weights, valid for `torch.compile(model, backend="farskip")` under that connectivity
       only; `Distilled`: the manifest that says so, and what was reached.
Never: leaves weights in the model other than the best that were seen; trains a model that can't be rewired as asked.

Steps:
1. Capture the model as the student will be compiled: a refusal ends the run before anything is computed.
2. Teacher: frozen copies of the parameters, or the original's logits on disk.
3. If asked for: the fold; trials of learning rates. A resumed run has the results of both in its state.
4. For each step: `accumulate` batches on each rank; loss = sum over targets / targets of all ranks; AdamW.
5. Each `evaluate_every` steps: held-out KL, the best weights, early stopping. Each `save_every` steps: a state; the
   last two are kept.
6. Restore the best weights, write the checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from farskip_compile.errors import ConfigError
from farskip_compile.healing.causal.batches import arguments, as_batch
from farskip_compile.healing.causal.evaluate import HeldOut
from farskip_compile.healing.causal.fully_sharded import at_rest, recover
from farskip_compile.healing.causal.ranks import Sharded, TrainingRanks, run_alone
from farskip_compile.healing.distill.beginning import begin, folded_of, numbers_of, trials_of
from farskip_compile.healing.distill.checkpoints import save_checkpoint
from farskip_compile.healing.distill.config import AUTO, DistillConfig
from farskip_compile.healing.distill.recomputing import check_recomputing, recomputing
from farskip_compile.healing.distill.records import Records
from farskip_compile.healing.distill.run import DistillRun
from farskip_compile.healing.distill.states import ANEW
from farskip_compile.healing.distill.student import check_units
from farskip_compile.healing.distill.trials import Trial, check_restartable
from farskip_compile.healing.fold.stand_ins import Parameters
from farskip_compile.manifest import Manifest
from farskip_compile.tools.describe import describe
from farskip_compile.tools.prepare.preserve_state import modes_kept

CHECKPOINT = "model"
"""Folder of the result, in `output`."""


@dataclass(frozen=True)
class Distilled:
    """The result of a run."""

    model: nn.Module
    """With the best weights."""
    manifest: Manifest
    """Which form they are for; `torch.compile(model, backend="farskip", options={"manifest": ...})`."""
    before: HeldOut
    """Rewired, with the original's weights."""
    after: HeldOut
    """Rewired, with the weights that the model has now."""
    learning_rate: float
    """As given, or the best of those tried."""
    best_step: int
    """Number of steps after which these weights were reached; 0: the original's."""
    steps: int
    """Optimizer steps that were made."""
    tokens: int
    """Targets seen in these steps, by all ranks."""
    stopped_early: bool
    """Whether `patience` ended the run."""
    folded: HeldOut | None = None
    """Rewired, with the weights of the fold, before the first step; None: no fold was asked for."""
    trials: tuple[Trial, ...] = ()
    """Learning rates that were tried."""
    notes: dict[str, Any] = field(default_factory=dict)
    """How the weights were made, in JSON: recipe, learning rate, beta2, what the fold repaired."""
    history: tuple[tuple[int, HeldOut], ...] = field(default=(), repr=False)
    """Evaluations of this process, each with the number of steps before it."""
    _ranks: TrainingRanks | None = field(default=None, repr=False, compare=False)

    def save(self, folder: str | Path) -> Path:
        """Write checkpoint and manifest into `folder`; on several ranks, on all of them.

        Raises:
            ConfigError: safetensors is missing.
            ManifestError: the folder can't be written.
        """
        assert self._ranks is not None
        save_checkpoint(self.model, self.manifest, Path(folder), self._ranks)
        return Path(folder)


def self_distill(
    model: nn.Module,
    data: Iterable[Any],
    config: DistillConfig | None = None,
    *,
    held_out: Sequence[Any] | Iterable[Any],
    sharded: Sharded | None = None,
    **options: Any,
) -> Distilled:
    """Train `model` to give under the requested connectivity the output that it gives now.

    The loss is KL(original || student), a mean over target tokens (paper, eq. 4). All parameters that require a
    gradient are trained. The model is the student, so that its weights are the healed ones afterwards.

    Args:
        model: maps token ids [B, T] to logits [B, T, V], or to something with `.logits`; not compiled. One of
            transformers may need `farskip_compile.prepare` first.
        data: batches, as `farskip_compile.healing.causal.batches` has them: any iterable, which is started again when
            it ends. On several ranks, each has its own.
        config: what is requested; or give its fields as keyword arguments.
        held_out: batches for evaluation: the best weights are chosen by them.
        sharded: on several ranks, whether a parameter (name, parameter) is this rank's part of one that is spread over
            them; None: what differs between the ranks is. DTensors are recognised.
        **options: fields of `DistillConfig`.

    Raises:
        ConfigError: wrong options, data or model; `output` holds the state of another run, or another process writes
            into it.
        DistillationError: the loss is no longer finite; or all states in `output`, or a file of
            its cached teacher, are damaged.
        FarSkipError: the model can't be rewired as asked.
    """
    if config is not None and options:
        raise ConfigError("both a configuration and options are given", way_out="give one of them")
    config = config if config is not None else DistillConfig.from_mapping(options)
    held_out = list(held_out)
    if not held_out:
        raise ConfigError(
            "there are no held-out batches", way_out="held_out=[...]: the best weights are chosen by them"
        )
    with torch.random.fork_rng(), modes_kept(model):
        model.train()
        if config.gradient_checkpointing:
            check_recomputing(model)
        if config.fold or config.learning_rate == AUTO:
            check_restartable(data)
        check_units(model, config)
        args, kwargs = arguments(as_batch(held_out[0], next(model.parameters()).device), model)
        at_rest(model)
        with Parameters(model).as_plain():  # whole shapes, and one graph, whatever FSDP2 has made of the model
            found = describe(model, *args, connectivity=config.connectivity, layers=config.layers, **kwargs)
        with run_alone(config.output, TrainingRanks(model, lambda name, parameter: False), ANEW):
            run = DistillRun(model, data, held_out, config, sharded)
            try:
                with recomputing(model, wanted=config.gradient_checkpointing):
                    return _take_steps(run, found)
            finally:
                run.end()


def _take_steps(run: DistillRun, manifest: Manifest) -> Distilled:
    config, ranks = run.config, run.ranks
    if ranks.parts:  # its shapes are this rank's
        manifest = dataclasses.replace(manifest, fingerprint=None)
    before = run.evaluate()
    history = [(0, before)]
    resumed = config.output is not None and config.resume and run.resume()
    if not resumed:
        begin(run)
        run.best.record(0, (folded_of(run.notes) or before).score)
        if run.notes and config.output is not None:  # what took its time is not done again
            run.save()
    stopped = run.best.exhausted
    records = Records(config, run.taken, first=ranks.rank == 0)
    try:
        if run.taken == 0:
            records.write(0, **before.to_json(), **numbers_of(run.notes))
        while run.taken < config.steps and not stopped:
            step = run.step()
            numbers: dict[str, Any] = {**dataclasses.asdict(step), "tokens": run.tokens}
            if step.stream is None:
                del numbers["stream"]
            if run.taken % config.evaluate_every == 0 or run.taken == config.steps:
                history.append((run.taken, run.evaluate()))
                numbers |= history[-1][1].to_json()
                stopped = run.best.record(run.taken, history[-1][1].score)
            records.write(run.taken, **numbers)
            if config.output is not None and (
                run.taken % config.save_every == 0 or run.taken == config.steps or stopped
            ):
                run.save()
    except BaseException:
        recover(run.model)
        raise
    finally:
        records.close()
        run.best.restore()
    assert run.rate is not None
    notes = {"recipe": config.recipe, "learning_rate": run.rate, "beta2": run.beta2, **run.notes}
    done = Distilled(
        model=run.model,
        manifest=dataclasses.replace(manifest, healing=notes),
        before=before,
        after=run.evaluate(),
        learning_rate=run.rate,
        best_step=run.best.step,
        steps=run.taken,
        tokens=run.tokens,
        stopped_early=stopped,
        folded=folded_of(run.notes),
        trials=trials_of(run.notes),
        notes=notes,
        history=tuple(history),
        _ranks=ranks,
    )
    if config.output is not None:
        done.save(config.output / CHECKPOINT)
    return done
