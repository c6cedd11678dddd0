# SPDX-License-Identifier: Apache-2.0
"""A learning rate by trial: short runs with different rates, from the same start.

In:    a run that has not taken a step.
Out:   `Trial`s; the run has the rate of the best one, and is as it was. All ranks choose the same, since they judge by
       the held-out KL of all ranks.
Never: a weight, a random number or a batch that the run would not have had without; a rate whose loss is not finite.

Algorithm:
1. Keep the weights, on the CPU.
2. For each of three rates, a factor of 2 apart: `SHARE` of the run's steps with its schedule made as much shorter, on
   its first batches, with its random numbers; evaluate; put everything back.
3. Take the rate with the least held-out KL (without a teacher: loss).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from farskip_compile.errors import ConfigError, DistillationError
from farskip_compile.healing.causal.batches import Feed
from farskip_compile.healing.causal.evaluate import HeldOut
from farskip_compile.healing.causal.tensor_files import local
from farskip_compile.healing.distill.optimizer import usual_rate
from farskip_compile.healing.distill.run import DistillRun
from farskip_compile.tools.prepare.preserve_state import state_kept

log = logging.getLogger("farskip_compile")

SHARE = 0.03
"""Of the steps, for each trial."""
FACTORS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Trial:
    """One learning rate that was tried."""

    learning_rate: float
    """Of AdamW."""
    steps: int
    """So many were made."""
    held_out: HeldOut | None
    """After these steps; None: a loss was not finite."""

    @property
    def score(self) -> float:
        """Lower is better."""
        return math.inf if self.held_out is None else self.held_out.score

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        found = dict.fromkeys(("loss", "kl", "top1")) if self.held_out is None else self.held_out.figures
        return {"learning_rate": self.learning_rate, "steps": self.steps, **found}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Trial:
        """The trial that `to_json` made `found` of."""
        held_out = HeldOut(found["loss"], found["kl"], found["top1"]) if found["loss"] is not None else None
        return cls(found["learning_rate"], found["steps"], held_out)


def check_restartable(data: Iterable[Any]) -> None:
    """What comes before the first step takes the first batches: the data must give them again.

    Raises:
        ConfigError: it can be traversed once only.
    """
    if isinstance(data, Iterator):
        raise ConfigError(
            "a fold and trials of learning rates take the first batches of the data, which can be traversed once only",
            way_out="a list, a DataLoader or another iterable that starts anew; or fold=False and a learning rate",
        )


def try_rates(run: DistillRun) -> tuple[Trial, ...]:
    """Choose the learning rate of `run`.

    Raises:
        DistillationError: with none of the rates the loss stays finite.
    """
    config = run.config
    steps = max(1, round(SHARE * config.steps))
    pace = dataclasses.replace(config, steps=steps, warm_up_steps=round(config.warm_up_steps * steps / config.steps))
    usual = usual_rate(run.model, run.ranks)
    start = {value: local(value).detach().cpu().clone() for value in run.model.parameters()}  # 1
    found = []
    for factor in FACTORS:  # 2
        run.rate, run.pace = usual * factor, pace
        try:
            with state_kept([run.model]):
                found.append(_one(run, steps))
        finally:
            _put_back(run, start)
        log.info("learning rate %.3g: held-out %.5g after %d steps", run.rate, found[-1].score, steps)
    best = min(found, key=lambda trial: trial.score)  # 3
    if not math.isfinite(best.score):
        raise DistillationError(
            f"the loss does not stay finite with learning rates from {found[0].learning_rate:.3g} on",
            way_out="learning_rate=..., a smaller one; and a look at the model and its data",
        )
    run.rate = best.learning_rate
    return tuple(found)


def _one(run: DistillRun, steps: int) -> Trial:
    assert run.rate is not None
    try:
        for _ in range(steps):
            run.step()
        found = run.evaluate()
        return Trial(run.rate, steps, found if math.isfinite(found.score) else None)
    except DistillationError:  # on all ranks: the loss is that of all
        return Trial(run.rate, steps, None)


@torch.no_grad()
def _put_back(run: DistillRun, start: Mapping[nn.Parameter, torch.Tensor]) -> None:
    for value, kept in start.items():
        local(value).copy_(kept)
    run.optimizer.state.clear()
    run.optimizer.zero_grad()
    run.taken, run.tokens, run.beta2, run.pace = 0, 0, None, run.config
    run.feed = Feed(run.data, run.device)
