# SPDX-License-Identifier: Apache-2.0
"""How results are compared: bit for bit, or relative to the largest entry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from farskip_compile.testing import relative_difference
from farskip_compile.testing.comparing import scale_of_gradients

__all__ = ["assert_gradients_close", "far_gradients", "relative_difference", "run_with_gradients"]


def run_with_gradients(
    function: Callable[..., torch.Tensor], model: nn.Module, *args: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output and gradients of all parameters, for a loss that weighs every output differently."""
    model.zero_grad(set_to_none=True)
    output = function(*args)
    weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return output.detach(), gradients


def assert_gradients_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float) -> None:
    """Every parameter, and the same parameters on both sides."""
    assert left.keys() == right.keys()
    far = far_gradients(left, right, tolerance, 0.0)
    assert not far, far


def far_gradients(
    left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float, least_scale: float | None = None
) -> dict[str, float]:
    """How far those gradients are apart that are farther than `tolerance`; by default those that cancel out are
    measured by the largest of all: generated inputs have equal tokens, which leave keys without a gradient."""
    scale = scale_of_gradients([*left.values(), *right.values()]) if least_scale is None else least_scale
    apart = {name: relative_difference(left[name], right[name], scale) for name in left}
    return {name: by for name, by in apart.items() if not by <= tolerance}
