"""How results are compared: bit for bit, or relative to the largest entry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


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


def relative_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute entry."""
    scale = max(left.abs().max().item(), right.abs().max().item(), 1e-300)
    return (left - right).abs().max().item() / scale


def assert_gradients_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float) -> None:
    """Every parameter, and the same parameters on both sides."""
    assert left.keys() == right.keys()
    worst = {name: relative_difference(left[name], right[name]) for name in left}
    bad = {name: value for name, value in worst.items() if not value <= tolerance}
    assert not bad, bad
