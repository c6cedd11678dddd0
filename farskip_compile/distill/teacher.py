"""The teacher: what the original model says about a batch.

In:    the model, before its first training step.
Out:   a function of a batch that gives the original's logits, or (`teacher_cache`) the largest of them.
Never: copies the module: a copy may share what a hook or a replaced forward remembers of the original. The module
       itself is run as written, in evaluation mode, with frozen copies of its parameters and buffers. A softmax in less
       than float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from farskip_compile.distill.batches import Batch, caller
from farskip_compile.errors import ConfigError
from farskip_compile.prepare.preserve_state import modes_kept


@dataclass(frozen=True)
class TopLogits:
    """The largest log-probabilities of a teacher at each position but the last."""

    values: torch.Tensor
    """[B, T - 1, k], log-probabilities, the largest first."""
    indices: torch.Tensor
    """[B, T - 1, k], tokens."""

    @classmethod
    def of(cls, logits: torch.Tensor, k: int) -> TopLogits:
        """The k largest of logits [B, T, V]."""
        log_p = logits[:, :-1].float().log_softmax(-1)
        values, indices = log_p.topk(min(k, log_p.shape[-1]), dim=-1)
        return cls(values, indices)


Teacher = Callable[[Batch], torch.Tensor | TopLogits]
"""Gives the original's logits, or the largest of them, for a batch; without gradients."""


class FrozenTeacher:
    """The model as written, with the parameters that it has now.

    The model may be trained. Not `copied`: for a teacher that is asked before the first step only.
    """

    def __init__(self, model: nn.Module, *, copied: bool = True) -> None:
        self.model = model
        named = dict((*model.named_parameters(), *model.named_buffers()))
        values = self.values = {name: value.detach().clone() for name, value in named.items()} if copied else {}
        self._logits = caller(lambda *args, **kwargs: functional_call(model, values, args, kwargs), model)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits [B, T, V]."""
        with evaluating(self.model):
            return self._logits(batch)

    def check_frozen(self, batch: Batch, before: torch.Tensor) -> None:
        """Find a teacher that moves with its student: its logits must be what they were, bit for bit.

        Raises:
            ConfigError: they are not.
        """
        if not torch.equal(before, self(batch)):
            raise ConfigError(
                "the teacher no longer gives the logits that it gave before the first step: a part of the model that "
                "is trained is neither a parameter nor a buffer of it, or the model is not deterministic in evaluation "
                "mode",
                way_out="register what is trained with the module; or teacher='cache', which runs the original before",
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within a `with`; afterwards each module has the mode that it had."""
    with modes_kept(model):
        for module in model.modules():
            module.training = False
        yield
