# SPDX-License-Identifier: Apache-2.0
"""A small model, batches, and training by hand: the FarSkip form written by hand, and plain PyTorch."""

from __future__ import annotations

import torch
from torch import nn

from farskip_compile.models import FarSkipForm, build

BATCHES = 3


def small() -> nn.Module:
    return build("mixtral", layers=("moe", "moe"), vocab_size=32, hidden_size=32)


def batches(rank: int = 0) -> list[torch.Tensor]:
    """Of one rank."""
    return list(torch.randint(0, 32, (BATCHES, 2, 8), generator=torch.Generator().manual_seed(rank)))


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def trained_by_hand(ranks: int = 1, epochs: int = 1, connectivity: str = "full") -> nn.Module:
    """After steps with the mean of the gradients of all ranks."""
    model = small()
    by_hand, optimizer = FarSkipForm(model, connectivity=connectivity), optimizer_of(model)
    for _ in range(epochs):
        for number in range(BATCHES):
            gradients = []
            for rank in range(ranks):
                model.zero_grad()
                ids = batches(rank)[number]
                loss_of(by_hand(ids), ids).backward()
                gradients.append([parameter.grad for parameter in model.parameters()])
            for parameter, *each in zip(model.parameters(), *gradients, strict=True):
                parameter.grad = sum(each[1:], each[0]) / ranks
            optimizer.step()
    return model


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether both have the same parameters, to the last bit."""
    theirs = dict(other.named_parameters())
    return all(torch.equal(value, theirs[name]) for name, value in one.named_parameters())
