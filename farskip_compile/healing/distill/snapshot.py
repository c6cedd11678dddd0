# SPDX-License-Identifier: Apache-2.0
"""The tensors of a run that change, taken out of it and put back.

In:    a model that is trained, its optimizer and its best weights; or a state that was read from disk.
Out:   tensors by name: `value/NAME`, `best/NAME`, `optimizer.KEY/NAME`; of each rank for itself `own/generator`,
       `own/epoch` (the generator when the epoch began) and `own/cuda.N`. Or the run as it was.
Never: changes anything before all of a state fits: names, types and shapes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from farskip_compile.errors import DistillationError
from farskip_compile.healing.causal.batches import Position
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.causal.tensor_files import local
from farskip_compile.healing.distill.best import Best
from farskip_compile.healing.distill.states import ANEW, RestoredState, is_own

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps in the shape of a parameter; besides, `step`, a number."""
GENERATOR, EPOCH = "own/generator", "own/epoch"


class TrainingSnapshot:
    """See the module."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, best: Best, ranks: TrainingRanks) -> None:
        self.model, self.optimizer, self.best, self.ranks = model, optimizer, best, ranks

    def take(self, position: Position) -> dict[str, torch.Tensor]:
        """Everything that this rank has to write."""
        found = {GENERATOR: torch.get_rng_state()}
        if position.generator is not None:
            found[EPOCH] = position.generator
        if torch.cuda.is_available():
            found |= {f"own/cuda.{number}": value for number, value in enumerate(torch.cuda.get_rng_state_all())}
        for name, value in self._named().items():
            # parts of DTensors differ between ranks, as the parts that `ranks` knows do
            if self.ranks.rank == 0 or name in self.ranks.parts or hasattr(value, "to_local"):
                found[f"value/{name}"] = value
                found |= {f"optimizer.{key}/{name}": kept for key, kept in self.optimizer.state.get(value, {}).items()}
                if name in self.best.weights:
                    found[f"best/{name}"] = self.best.weights[name]
        return found

    def check(self, state: RestoredState) -> RestoredState:
        """`state`, if it fits.

        Raises:
            DistillationError: it does not.
        """
        named, trained = self._named(), dict(self.model.named_parameters())
        for key in (GENERATOR, *(f"value/{name}" for name in named)):
            if key not in state.tensors:
                raise DistillationError(f"the state lacks {key}", way_out=ANEW)
        for key, value in state.tensors.items():
            if is_own(key):
                fits = value.dtype == torch.uint8 and _is_generator(value, cuda=key not in (GENERATOR, EPOCH))
            else:
                what, _, name = key.partition("/")
                like = named.get(name) if what == "value" else trained.get(name)
                fits = like is not None and _fits(what, value, like)
            if not fits:
                raise DistillationError(f"{key} in the state does not fit this run", way_out=ANEW)
        return state

    @torch.no_grad()
    def put_back(self, state: RestoredState) -> None:
        """Make the run what it was; `state` fits."""
        for name, value in self._named().items():
            local(value).copy_(state.tensors[f"value/{name}"])
        names = {value: name for name, value in self.model.named_parameters()}
        trained = [value for group in self.optimizer.param_groups for value in group["params"]]
        states = {place: self._moments(value, names[value], state) for place, value in enumerate(trained)}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": {k: v for k, v in states.items() if v}, "param_groups": groups})
        weights = {}
        for name, value in self.model.named_parameters():
            if (kept := state.tensors.get(f"best/{name}")) is not None:
                weights[name] = _filled(value.detach().cpu(), kept)
        done = state.progress
        score = math.inf if done.best_score is None else done.best_score
        self.best.load({"score": score, "step": done.best_step, "waited": done.waited}, weights)

    def put_back_generators(self, state: RestoredState) -> None:
        """Make torch's random numbers go on as they would have."""
        torch.set_rng_state(state.tensors[GENERATOR].clone())
        for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            if (kept := state.tensors.get(f"own/cuda.{number}")) is not None:
                torch.cuda.set_rng_state(kept.clone(), number)

    def _named(self) -> dict[str, torch.Tensor]:
        return dict((*self.model.named_parameters(), *self.model.named_buffers()))

    def _moments(self, value: torch.Tensor, name: str, state: RestoredState) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in (*MOMENTS, "step"):
            if (kept := state.tensors.get(f"optimizer.{key}/{name}")) is not None:
                found[key] = _filled(value, kept) if key in MOMENTS else kept.clone()
        return found


def _filled(like: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """A tensor like `like`, a DTensor for a DTensor, with the local numbers `kept`."""
    found = torch.empty_like(like)
    local(found).copy_(kept)
    return found


def _fits(what: str, value: torch.Tensor, like: torch.Tensor) -> bool:
    if what == "optimizer.step":
        return value.numel() == 1
    known = what in ("value", "best", *(f"optimizer.{key}" for key in MOMENTS))
    here = local(like)
    return known and (value.dtype, value.shape) == (here.dtype, here.shape)


def _is_generator(value: torch.Tensor, *, cuda: bool) -> bool:
    """Whether a generator takes this state."""
    if cuda:
        return value.dim() == 1
    try:
        torch.Generator().set_state(value.clone())
    except (RuntimeError, TypeError):
        return False
    return True
