# SPDX-License-Identifier: Apache-2.0
"""The student's residual stream held to the teacher's: a further part of the loss, on request.

In:    a model; what student and teacher left behind each of its layers for a batch (`asking`).
Out:   the layers, by structure; the mismatch: for each layer sum((student - teacher)^2) / sum(teacher^2), over the
       positions that have a target, and of these the mean over layers; the weight of it in a step.
Never: goes by names; a gradient for the teacher; sums in less than float32.

On several ranks both sums are those of all ranks. The mismatch of a batch counts as often as the batch has targets, as
the other losses do; so with one batch for each step and rank, it is that of all tokens of the step.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from farskip_compile.errors import ConfigError, PartialModelError
from farskip_compile.healing.causal.asking import ModelOutput, first_of
from farskip_compile.healing.causal.batches import IGNORED, Batch, caller
from farskip_compile.healing.causal.head import few
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.distill.config import DistillConfig
from farskip_compile.tools.prepare.preserve_state import everything_kept
from farskip_compile.tools.regional.layers import find_layers

WITHOUT = "stream_weight=0"


def stream_layers(model: nn.Module, batch: Batch) -> list[nn.Module]:
    """The layers of `model`, in order: each is given what the one before it returned.

    Args:
        model: run once on the first tokens of `batch`, without gradients.
        batch: of token ids.

    Raises:
        ConfigError: they can't be told, or do not pass one stream on.
    """
    try:
        found = find_layers(model, None)[1]
    except PartialModelError as error:
        raise ConfigError(f"the residual stream can't be matched: {error.reason}", way_out=WITHOUT) from error
    layers = [layer for _, layer in found]
    given: list[tuple[int, Any, Any]] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, args, kwargs, out, at=at: given.append((at, (*args, *kwargs.values()), first_of(out))),
            with_kwargs=True,
        )
        for at, layer in enumerate(layers)
    ]
    try:
        with everything_kept([model], batch.inputs.values()), torch.no_grad():
            caller(model, model)(few(batch))
    finally:
        for hook in hooks:
            hook.remove()
    chained = all(any(one is before[2] for one in after[1]) for before, after in itertools.pairwise(given))
    streams = all(isinstance(out, torch.Tensor) and out.dim() == 3 and out.is_floating_point() for *_, out in given)
    if [at for at, *_ in given] != list(range(len(layers))) or not chained or not streams:
        first, last = found[0][0], found[-1][0]
        raise ConfigError(
            f"the residual stream can't be matched: {first} to {last} do not run once each, in order, each on the "
            "stream [batch, tokens, width] that the one before it returned",
            way_out=WITHOUT,
        )
    return layers


def mismatch(
    student: ModelOutput, teacher: ModelOutput, targets: torch.Tensor, ranks: TrainingRanks
) -> tuple[torch.Tensor, int]:
    """This rank's part of the mismatch, whose sum over ranks is the mismatch; and the targets of all ranks."""
    chosen = targets != IGNORED
    apart, sizes = [], []
    for ours, theirs in zip(student.streams, teacher.streams, strict=True):
        original = _wide(theirs[:, :-1][chosen].detach())
        apart.append((_wide(ours[:, :-1][chosen]) - original).square().sum())
        sizes.append(original.square().sum())
    *totals, tokens = ranks.sum(*torch.stack(sizes).tolist(), int(chosen.sum()))
    parts = [part / total for part, total in zip(apart, totals, strict=True) if total]
    return torch.stack(parts).sum() / len(apart) if parts else torch.stack(apart).sum() * 0.0, int(tokens)


def weight_at(step: int, config: DistillConfig) -> float:
    """The weight of the mismatch in step `step`, counted from 0: from `stream_weight` down to 0, a straight line."""
    return config.stream_weight * (1.0 - step / config.steps)


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value if value.dtype == torch.float64 else value.float()
