"""The teacher: what the original model says of a batch.

In:    the model, before its first training step.
Out:   a function of a batch that gives the original's logits, or the largest of them.
Never: copies the module. A copy may share what a hook or a replaced forward remembers of the original; here the module
       itself is run as written, in evaluation mode, with frozen copies of its parameters and buffers.

    FrozenTeacher   the copies, in memory
    CachedTeacher   the largest logits of each sequence, on disk (`teacher_cache`)

`assert_frozen`: what the teacher said of the first batch it must say again when the student has moved, bit for bit.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn
from torch.func import functional_call

from farskip_compile.distill.batches import Batch
from farskip_compile.distill.calling import arguments, logits_of, named_arguments
from farskip_compile.distill.loss import TopLogits
from farskip_compile.errors import ConfigError


class Teacher(Protocol):
    """Gives the original's logits, or the largest of them, for a batch."""

    def __call__(self, batch: Batch) -> torch.Tensor | TopLogits:
        """Without gradients."""
        ...


class FrozenTeacher:
    """The model as written, with the parameters that it has now.

    Args:
        model: is used for its code from now on, and may be trained.
        copied: False: the parameters are not copied; for a teacher that is asked before the first step only.
    """

    def __init__(self, model: nn.Module, *, copied: bool = True) -> None:
        self.model = model
        self.names = named_arguments(model)
        named = dict((*model.named_parameters(), *model.named_buffers()))
        self.values = {name: value.detach().clone() for name, value in named.items()} if copied else {}

    @torch.no_grad()
    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits [B, T, V]."""
        args, kwargs = arguments(batch, self.names)
        with evaluating(self.model):
            return logits_of(functional_call(self.model, self.values, args, kwargs))


class evaluating:
    """Evaluation mode within a `with`, and for each module the mode that it had afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.training = [module for module in model.modules() if module.training]

    def __enter__(self) -> None:
        for module in self.training:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module in self.training:
            module.training = True


class FrozenCheck:
    """Finds a teacher that moves with its student.

    Args:
        teacher: to be checked.
        batch: any.
    """

    def __init__(self, teacher: Teacher, batch: Batch) -> None:
        self.teacher, self.batch, self.said = teacher, batch, teacher(batch)

    def assert_frozen(self) -> None:
        """Compare with what was said when this was made.

        Raises:
            ConfigError: it is something else.
        """
        said, now = self.said, self.teacher(self.batch)
        pairs = (
            [(said.values, now.values), (said.indices, now.indices)]
            if isinstance(said, TopLogits) and isinstance(now, TopLogits)
            else [(said, now)]
        )
        if not all(torch.equal(one, other) for one, other in pairs):  # type: ignore[arg-type]
            raise ConfigError(
                "the teacher no longer says what it said before the first step: a part of the model that is trained is "
                "neither a parameter nor a buffer of it, or the model is not deterministic in evaluation mode",
                way_out="register what is trained with the module; or teacher='cache', which runs the original before",
            )
