# SPDX-License-Identifier: Apache-2.0
"""Operators that no pass has heard of, as a user's extension registers them."""

from __future__ import annotations

import torch


@torch.library.custom_op("farskip_fuzz::blend", mutates_args=())
def blend(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A nonlinear function of two tensors of one shape."""
    return torch.tanh(x) + 0.5 * y


@blend.register_fake
def _(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("farskip_fuzz::halve_", mutates_args=("x",))
def halve_(x: torch.Tensor) -> None:
    """Writes to its argument and returns nothing."""
    x.mul_(0.5)


@halve_.register_fake
def _(x: torch.Tensor) -> None:
    return None


@torch.library.custom_op("farskip_fuzz::overwrite", mutates_args=("out",))
def overwrite(x: torch.Tensor, out: torch.Tensor) -> None:
    """Writes its second argument; the name does not say so."""
    out.copy_(torch.sin(x))


@overwrite.register_fake
def _(x: torch.Tensor, out: torch.Tensor) -> None:
    return None


@torch.library.custom_op("farskip_fuzz::parts", mutates_args=())
def parts(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a tuple whose sum is the argument."""
    return x.clamp(max=0.0), x.clamp(min=0.0)


@parts.register_fake
def _(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(x)
