# SPDX-License-Identifier: Apache-2.0
"""The model of these tests, and how it is compiled."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from farskip_compile import Manifest, describe
from farskip_compile.models import build

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "layers": ("dense", "moe", "moe")}
IDS = torch.arange(12).view(2, 6)


def small(**changes: Any) -> nn.Module:
    """DeepSeek-V3 in three layers: one dense, two of experts with a shared one beside them."""
    return build("deepseek_v3", dtype=torch.float64, **{**SMALL, **changes})


@functools.cache
def described() -> Manifest:
    """`small()` under `full`."""
    return describe(small(), IDS)


def compiled(model: Any, **options: Any) -> torch.Tensor:
    """What `model`, compiled with these options, makes of `IDS`."""
    torch.compiler.reset()
    return torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager", **options})(IDS)
