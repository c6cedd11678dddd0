# SPDX-License-Identifier: Apache-2.0
"""The teacher: what the original model says about a batch.

In:    the model, before its first training step.
Out:   a function of a batch that gives the original's logits, or hidden states to compute them from (`asking`), or
       (`teacher_cache`) the largest of them.
Never: copies the module: a copy may share what a hook or a replaced forward remembers of the original. The module
       itself is run as written, in evaluation mode, with frozen copies of its parameters and buffers; of a model that
       FSDP2 has sharded with copies of this rank's shards, which change places with its own meanwhile
       (`fully_sharded`). A softmax in less than float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from farskip_compile.errors import ConfigError
from farskip_compile.healing.causal.asking import MEMORY, Asking, Hidden, ModelOutput, at_a_time
from farskip_compile.healing.causal.batches import Batch, caller
from farskip_compile.healing.causal.fully_sharded import at_rest, exchanged, units, values_of
from farskip_compile.tools.prepare.preserve_state import modes_kept


@dataclass(frozen=True)
class TopLogits:
    """The largest log-probabilities of a teacher at each position but the last."""

    values: torch.Tensor
    """[B, T - 1, k], log-probabilities, the largest first."""
    indices: torch.Tensor
    """[B, T - 1, k], tokens."""

    @classmethod
    def of(cls, said: torch.Tensor | Hidden, k: int, memory: int = MEMORY) -> TopLogits:
        """The k largest of logits [B, T, V], or of those of hidden states, of which `memory` bytes are computed at a
        time."""
        if isinstance(said, torch.Tensor):
            return cls(*_largest(said[:, :-1], k))
        rows = said.states[:, :-1]
        size = at_a_time(said.head.vocabulary, rows.dtype, memory)
        parts = [_largest(said.logits(part), k) for part in rows.flatten(0, 1).split(size)]
        values, indices = (torch.cat(found).unflatten(0, rows.shape[:2]) for found in zip(*parts, strict=True))
        return cls(values, indices)

    @property
    def size(self) -> int:
        """Bytes of both."""
        return self.values.nbytes + self.indices.nbytes

    def moved(self, device: torch.device) -> TopLogits:
        """The same on another device."""
        return TopLogits(self.values.to(device), self.indices.to(device))


def _largest(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    log_p = logits.float().log_softmax(-1)
    values, indices = log_p.topk(min(k, log_p.shape[-1]), dim=-1)
    return values, indices


TeacherFunction = Callable[[Batch], torch.Tensor | Hidden | TopLogits]
"""Gives what the losses take of the original for a batch; without gradients."""


class FrozenTeacher:
    """The model as written, with the parameters that it has now.

    The model may be trained. Not `copied`: for a teacher whose model does not change while it is asked. `asking`: how
    the model is asked; None: for whole logits. `as_written`: within it the model is wired as it was; for one whose
    layers have other forwards in the meantime.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        copied: bool = True,
        asking: Asking | None = None,
        as_written: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.as_written = model, as_written
        named = values_of(model)
        values = self.values = {name: value.detach().clone() for name, value in named.items()} if copied else {}
        in_place = copied and bool(units(model))

        def frozen(*args: Any, **kwargs: Any) -> Any:
            if in_place:
                with exchanged(model, values):
                    return model(*args, **kwargs)
            return functional_call(model, values, args, kwargs)

        logits = caller(frozen, model)
        self._ask = asking.of(frozen, values) if asking is not None else lambda batch: ModelOutput(logits(batch))

    @torch.no_grad()
    def answer(self, batch: Batch) -> ModelOutput:
        """All that the model says."""
        with evaluating(self.model), self.as_written():
            found = self._ask(batch)
        if self.values:  # else what was said may hold parameters of the model
            at_rest(self.model)
        return found

    def __call__(self, batch: Batch) -> torch.Tensor | Hidden:
        """Logits [B, T, V], or hidden states to compute them from."""
        return self.answer(batch).said

    def check_frozen(self, batch: Batch, before: ModelOutput) -> None:
        """Find a teacher that moves with its student: what it says must be what it was, bit for bit.

        Raises:
            ConfigError: it is not.
        """
        if not all(
            torch.equal(one, other) for one, other in zip(_told(before), _told(self.answer(batch)), strict=True)
        ):
            raise ConfigError(
                "the teacher no longer gives the logits that it gave before the first step: a part of the model that "
                "is trained is neither a parameter nor a buffer of it, or the model is not deterministic in evaluation "
                "mode",
                way_out="register what is trained with the module; or teacher='cache', which runs the original before",
            )


def _told(answer: ModelOutput) -> Iterator[torch.Tensor]:
    yield answer.logits
    yield from answer.streams
    if answer.hidden is not None:
        yield answer.hidden.states


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within a `with`; afterwards each module has the mode that it had."""
    with modes_kept(model):
        for module in model.modules():
            module.training = False
        yield
