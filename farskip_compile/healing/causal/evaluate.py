# SPDX-License-Identifier: Apache-2.0
"""How far the student is from its teacher on batches that it is not trained on.

In:    the student as a function of a batch, held-out batches, and the teacher.
Out:   `HeldOut`: KL, next-token loss, agreement, each a mean over targets of all ranks, and sums by sequence; `paired`:
       the difference of two of them, and its standard error.
Never: a gradient, a change of mode that stays; logits that are kept.

The teacher is asked about a batch before the first step. Hidden states and the largest logits are kept on the CPU, as
many as fit into `KEPT` bytes; about the other batches it is asked again in each evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from farskip_compile.errors import ConfigError
from farskip_compile.healing.causal.asking import MEMORY, Hidden
from farskip_compile.healing.causal.batches import Batch
from farskip_compile.healing.causal.losses import by_sequence
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.causal.teacher import TeacherFunction, TopLogits, evaluating

KEPT = 2**30
"""Bytes of what the teacher said that are kept, on each rank."""
MOST = math.log(torch.finfo(torch.float64).max)


@dataclass(frozen=True)
class HeldOut:
    """Means over held-out targets, in nats."""

    loss: float
    """Cross-entropy with the text."""
    kl: float | None
    """KL(teacher || student); None without a teacher."""
    top1: float | None
    """Fraction of the targets at which both find the same token most probable."""
    per_sequence: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """[4, S] in float64, on the CPU: sums of cross-entropy, KL and agreements, and the number of targets, of each
    held-out sequence of all ranks, rank after rank; None: not known, as of figures read from a file."""

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is too large for a number."""
        return math.exp(self.loss) if self.loss < MOST else math.inf

    @property
    def score(self) -> float:
        """What weights are chosen by, lower is better: the KL, or without a teacher the loss."""
        return self.kl if self.kl is not None else self.loss

    @property
    def figures(self) -> dict[str, float | None]:
        """The means by name; without what is known of each sequence."""
        return {name: getattr(self, name) for name in ("loss", "kl", "top1")}

    def to_json(self) -> dict[str, float | None]:
        """`figures` for metrics, by names of their own."""
        return {f"held_out_{name}": value for name, value in self.figures.items()}


def paired(one: HeldOut, other: HeldOut) -> tuple[float, float]:
    """The difference of two mean losses on the same sequences, `one` minus `other`, and its standard error, in nats.

    Sequences are what is independent: the error is that of a ratio of sums over them (difference, targets), so that
    what both find hard or easy cancels.

    Raises:
        ConfigError: they are not of the same sequences, or of less than two.
    """
    first, second = one.per_sequence, other.per_sequence
    if first is None or second is None or not torch.equal(first[3], second[3]) or first.shape[1] < 2:
        raise ConfigError(
            "these evaluations can't be compared sequence by sequence",
            way_out="two evaluations on the same held-out batches, with two sequences at least",
        )
    apart, targets = first[0] - second[0], first[3]
    mean = apart.sum() / targets.sum()
    count = len(apart)
    variance = ((apart - mean * targets) ** 2).sum() * count / (count - 1)
    return float(mean), float(variance.sqrt() / targets.sum())


class Evaluation:
    """Held-out batches, each rank's own or the same, and the teacher that is asked about them; no teacher: only the
    loss. `memory`: bytes that logits may take at a time.

    Raises:
        ConfigError: the ranks have different numbers of batches, so that an exchange of tokens would hang.
    """

    def __init__(
        self, batches: Sequence[Batch], teacher: TeacherFunction | None, ranks: TrainingRanks, memory: int = MEMORY
    ) -> None:
        self.batches, self.teacher, self.ranks, self.memory = batches, teacher, ranks, memory
        total, squares = ranks.sum(len(batches), len(batches) ** 2)
        if squares * ranks.size != total**2:
            raise ConfigError(
                f"this rank has {len(batches)} held-out batches, the {ranks.size} ranks together {total:.0f}",
                way_out="equally many on each rank",
            )
        self._said: dict[int, Hidden | TopLogits] = {}
        self._room: float = KEPT * ranks.size
        for number in range(len(batches) if teacher is not None else 0):
            self._keep(number)

    @torch.no_grad()
    def __call__(self, student: Callable[[Batch], torch.Tensor | Hidden], model: nn.Module) -> HeldOut:
        """Evaluate `student`, which runs `model`."""
        found = []
        with evaluating(model):
            for number, batch in enumerate(self.batches):
                known = self._known(number)
                found.append(by_sequence(student(batch), known, batch.targets, self.memory).cpu())
        mine = torch.cat(found, dim=1)
        loss, kl, same, count = self.ranks.sum(*mine.sum(1).tolist())
        judged = self.teacher is not None
        return HeldOut(
            loss / count, kl / count if judged else None, same / count if judged else None, self._of_all_ranks(mine)
        )

    def _known(self, number: int) -> torch.Tensor | Hidden | TopLogits | None:
        if self.teacher is None:
            return None
        if number in self._said:
            return self._said[number].moved(self.batches[number].targets.device)
        return self.teacher(self.batches[number])

    def _keep(self, number: int) -> None:
        """Ask the teacher, and keep what it says if that is small enough."""
        assert self.teacher is not None
        if self._room <= 0:
            return
        said = self.teacher(self.batches[number])
        if isinstance(said, torch.Tensor):  # whole logits
            self._room = 0
            return
        (size,) = self.ranks.sum(said.size)  # of all, so that all ask again about the same batches
        self._room -= size
        if self._room >= 0:
            self._said[number] = said.moved(torch.device("cpu"))

    def _of_all_ranks(self, mine: torch.Tensor) -> torch.Tensor:
        if not self.ranks.active:
            return mine
        theirs: list[Any] = [None] * self.ranks.size
        dist.all_gather_object(theirs, mine)
        return torch.cat(theirs, dim=1)
