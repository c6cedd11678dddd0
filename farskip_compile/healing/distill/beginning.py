# SPDX-License-Identifier: Apache-2.0
"""What a run does before its first step, once: the fold, and trials of learning rates.

In:    a run that has not taken a step, and was evaluated; its data can be started anew.
Out:   the same run with folded weights and a learning rate; `run.notes` says what was found, in JSON, and goes into its
       states: a run that is resumed does not begin again.
Never: changes the teacher, which was copied, or asked, before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from farskip_compile.healing.causal.batches import IGNORED, Batch, Feed
from farskip_compile.healing.causal.evaluate import HeldOut
from farskip_compile.healing.distill.config import AUTO
from farskip_compile.healing.distill.run import DistillRun
from farskip_compile.healing.distill.trials import Trial, try_rates
from farskip_compile.healing.fold import fold
from farskip_compile.tools.prepare.preserve_state import state_kept

log = logging.getLogger("farskip_compile")

FOLD = "fold"
"""Folder of the fold's own states, in `output`."""


def begin(run: DistillRun) -> None:
    """Do what the configuration asks for before the first step.

    Raises:
        DistillationError: with no learning rate the loss stays finite.
        FarSkipError: the model can't be folded.
    """
    if run.config.fold:
        run.notes["fold"] = _fold(run)
        run.notes["folded"] = run.evaluate().figures
    if run.config.learning_rate == AUTO:
        run.notes["trials"] = [trial.to_json() for trial in try_rates(run)]


def folded_of(notes: Mapping[str, Any]) -> HeldOut | None:
    """The evaluation of the folded model; None: there was no fold."""
    return HeldOut(**notes["folded"]) if "folded" in notes else None


def trials_of(notes: Mapping[str, Any]) -> tuple[Trial, ...]:
    """The learning rates that were tried."""
    return tuple(Trial.from_json(one) for one in notes.get("trials", ()))


def numbers_of(notes: Mapping[str, Any]) -> dict[str, float | None]:
    """What was found, as metrics of step 0."""
    found = {f"folded_{name}": value for name, value in notes.get("folded", {}).items()}
    for number, trial in enumerate(notes.get("trials", ()), start=1):
        found |= {f"trial_{number}_{name}": trial[name] for name in ("learning_rate", "loss", "kl")}
    return found


def _fold(run: DistillRun) -> dict[str, Any]:
    config = run.config
    with state_kept([run.model]), run.as_written():
        feed = Feed(run.data, run.device)
        calibration = [_given(next(feed)) for _ in range(config.fold_batches)]
        found = fold(
            run.model,
            calibration,
            connectivity=config.connectivity,
            layers=config.layers,
            options=config.options,
            held_out=[_given(batch) for batch in run.evaluation.batches],
            folder=config.output / FOLD if config.output is not None and config.resume else None,
        )
    run.feed = Feed(run.data, run.device)
    log.info("fold: held-out KL %.5g, before %.5g", found.kl_after, found.kl_before)
    taken = sum(read.accepted for read in found.reads)
    return {
        "kl_before": found.kl_before, "kl_after": found.kl_after, "repaired": found.repaired, "tokens": found.tokens,
        "accepted": taken, "rejected": len(found.reads) - taken,
    }  # fmt: skip


def _given(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch as data gives it."""
    return {**batch.inputs, "labels": F.pad(batch.targets, (1, 0), value=IGNORED)}
