# SPDX-License-Identifier: Apache-2.0
"""Models for the command line's `package.module:callable`, good and bad."""

from __future__ import annotations

import torch
from torch import nn

from farskip_compile.models import build


def dense():
    return build("deepseek_v3", layers=("dense", "dense"))


def with_args():
    return build("mixtral", layers=("moe", "moe")), (torch.zeros(1, 5, dtype=torch.long),)


def with_kwargs():
    return build("mixtral", layers=("moe", "moe")), (), {"ids": torch.zeros(1, 5, dtype=torch.long)}


def no_vocabulary():
    return nn.Linear(4, 4)


def no_model():
    return 3


def raises():
    raise RuntimeError("weights are missing")


class Breaks(nn.Module):
    """Has a graph break."""

    def __init__(self):
        super().__init__()
        self.decoder = build("mixtral", layers=("moe", "moe"))

    def forward(self, ids):
        torch._dynamo.graph_break()
        return self.decoder(ids)


def breaks():
    return Breaks(), (torch.zeros(1, 5, dtype=torch.long),)
