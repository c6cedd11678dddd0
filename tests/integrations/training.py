# SPDX-License-Identifier: Apache-2.0
"""A tiny model that a Trainer trains, and the same training by hand, of the FarSkip form that is written by hand.

Contract: SGD without momentum at a constant rate and without clipping, so that a few lines of Python are the whole
oracle: `by_hand` shares nothing with the compiler or the Trainer, but for the loss that transformers computes of the
logits. Losses are equal bit for bit; gradients are added up in another order, so weights are equal to `ROUNDING`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from farskip_compile.models.generic_form import GenericFarSkipForm
from tests.guard.tiny import tiny

RATE = 0.05
ROWS = 2
ROUNDING = 2e-7
"""Of weights around 0.2 in float32, after steps of the size 1e-3."""
LEFT_OUT = {"moe.0": ("a0",), "attention.1": ("r0",), "moe.1": ("a1",)}
Batch = dict[str, torch.Tensor]


def data() -> list[Batch]:
    """Sixteen rows of eight tokens."""
    rows = torch.randint(1, 64, (16, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in rows]


def model() -> Any:
    return tiny(prepared=False).train()


def arguments(folder: Path, **more: Any) -> transformers.TrainingArguments:
    plain = {
        "per_device_train_batch_size": ROWS,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "max_steps": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    return transformers.TrainingArguments(str(folder), **{**plain, **more})


class Recorder:
    """A collator that keeps the batches which it makes, in the order in which they are trained on."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def __call__(self, rows: Sequence[Batch]) -> Batch:
        self.batches.append({key: torch.stack([row[key] for row in rows]) for key in rows[0]})
        return self.batches[-1]


def by_hand(plain: Any, steps: Sequence[Sequence[Batch]], *, autocast: bool = False) -> list[torch.Tensor]:
    """Train `plain` in its FarSkip form; each step sums over its batches. Returns the loss of each step."""
    form = GenericFarSkipForm(plain)
    context = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    losses = []
    for step in steps:
        items = sum(batch["labels"][:, 1:].numel() for batch in step)
        total = torch.zeros(())
        for batch in step:
            with context:
                loss = form(**batch, num_items_in_batch=torch.tensor(items)).loss
            loss.backward()
            total += loss.detach()
        with torch.no_grad():
            for parameter in plain.parameters():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
                    parameter.grad = None
        losses.append(total)
    return losses


def assert_equal(found: Any, expected: Any) -> None:
    """Parameter by parameter, to `ROUNDING`."""
    for (name, left), (_, right) in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        assert (left - right).abs().max() <= ROUNDING, name
