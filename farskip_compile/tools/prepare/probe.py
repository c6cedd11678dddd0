# SPDX-License-Identifier: Apache-2.0
"""Are two ways to compute a module's experts the same function? Decided by running both.

Contract: an experts module with the interface forward(hidden_states, top_k_index, top_k_weights) and stacked weights
comes in, and a function that might replace its forward; None goes out if they agree, or the reason why not. The
module's weights are not read: both compute on small random ones, on the CPU, so the size and the place of the model
don't matter. What runs is a copy, so that state stays as it was: weights, mode, attributes, random numbers.

1. Every index that the weights have room for is routed to, from tokens of very different sizes (clamps and limits
   show at the large ones), in training and in evaluation mode.
2. Outputs must agree token by token, and the gradients of tokens, routing weights and expert weights as a whole, up
   to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call

from farskip_compile.tools.prepare.preserve_state import everything_kept
from farskip_compile.tools.prepare.probe_inputs import isolated

ExpertsForward = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""A forward: module, tokens [T, D], indices [T, K], routing weights [T, K] to [T, D]."""

HIDDEN, INTERMEDIATE = 16, 24  # multiples of 16 bytes, which grouped kernels ask for
SCALES = (0.03, 1.0, 30.0, 1000.0)
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-3}
"""Seen are 1e-15 and 1e-6; another function differs by 1e-1 or more on some token."""


class _Bound(nn.Module):
    """A forward as a module, so that `functional_call` can put other weights in its place."""

    def __init__(self, module: nn.Module, function: ExpertsForward) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.function(self.module, *args)


def difference(
    module: nn.Module,
    old: ExpertsForward,
    new: ExpertsForward,
    shapes: dict[str, tuple[int, ...]],
    indices: int,
    dtype: torch.dtype,
) -> str | None:
    """Why the forward `new` can't take the place of `old`, or None.

    Args:
        shapes: of the small weights that stand for each parameter of the experts.
        indices: how many different indices may be routed to.
        dtype: in which both compute.
    """
    try:
        twin = isolated(module)
        with everything_kept([twin]):
            for training in (False, True):
                twin.train(training)
                for top_k in sorted({min(2, indices), min(3, indices)}):  # one: some loops squeeze it away
                    expected, found = (_run(twin, f, shapes, indices, top_k, dtype) for f in (old, new))
                    if reason := _compare(expected, found, TOLERANCES[dtype]):
                        return f"{reason} in {'training' if training else 'evaluation'} mode"
    except Exception as error:  # whatever a foreign forward raises on such input means: can't tell
        return f"could not be run on random input ({type(error).__name__}: {str(error).splitlines()[0]})"
    return None


def _run(
    module: nn.Module,
    forward: ExpertsForward,
    shapes: dict[str, tuple[int, ...]],
    indices: int,
    top_k: int,
    dtype: torch.dtype,
) -> list[torch.Tensor]:
    """Output, and gradients of tokens, routing weights and parameters."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = {name: (normal(*shape) / 4).to(dtype).requires_grad_() for name, shape in shapes.items()}
    first = torch.arange(indices).repeat(len(SCALES))  # [T]: every index at every size
    index = torch.stack([(first + k) % indices for k in range(top_k)], dim=1)  # [T, K]
    scale = torch.tensor(SCALES, dtype=torch.float64).repeat_interleave(indices).unsqueeze(1)  # [T, 1]
    tokens = (normal(len(first), HIDDEN) * scale).to(dtype).requires_grad_()
    routing = torch.rand(index.shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    named = {f"module.{name}": weight for name, weight in weights.items()}
    output = functional_call(_Bound(module, forward), named, (tokens, index, routing))
    pull = (normal(*output.shape) / scale).to(dtype)
    leaves = [tokens, routing, *weights.values()]
    return [output.detach(), *torch.autograd.grad(output, leaves, pull, allow_unused=True, materialize_grads=True)]


def _compare(old: list[torch.Tensor], new: list[torch.Tensor], tolerance: float) -> str | None:
    if old[0].shape != new[0].shape or old[0].dtype != new[0].dtype:
        return f"gives {tuple(new[0].shape)} {new[0].dtype}, not {tuple(old[0].shape)} {old[0].dtype}"
    gap = (old[0] - new[0]).abs().amax(dim=1)
    size = old[0].abs().amax(dim=1)
    if not bool((gap <= tolerance * size).all()):
        return "gives another output"
    for left, right in zip(old[1:], new[1:], strict=True):
        if not bool((left - right).abs().max() <= tolerance * left.abs().max()):
            return "gives other gradients"
    return None
