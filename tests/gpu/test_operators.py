# SPDX-License-Identifier: Apache-2.0
"""Attention of a GPU on the CPU, against PyTorch's own on the CPU and its derivative."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.gpu.operators import ATEN, on_cpu

KINDS = ["flash", "efficient"]


def attend(kind: str, inputs: list[torch.Tensor], causal: bool, scale: float | None) -> Any:
    if kind == "flash":
        return ATEN._scaled_dot_product_flash_attention(*inputs, 0.0, causal, scale=scale)
    return ATEN._scaled_dot_product_efficient_attention(*inputs, None, True, 0.0, causal, scale=scale)


def differentiate(
    kind: str, grad: torch.Tensor, inputs: list[torch.Tensor], saved: Any, causal: bool, scale: Any
) -> Any:
    out, logsumexp, *rest = saved
    if kind == "flash":
        given = (grad, *inputs, out, logsumexp, *rest[:4], 0.0, causal, *rest[4:6])
        return ATEN._scaled_dot_product_flash_attention_backward(*given, scale=scale)
    given = (grad, *inputs, None, out, logsumexp, *rest, 0.0, [True, True, True, False], causal)
    return ATEN._scaled_dot_product_efficient_attention_backward(*given, scale=scale)[:3]


def drawn(kind: str) -> list[torch.Tensor]:
    """Queries, keys and values, [2, 3, 5, .]; flash attention needs one width."""
    torch.manual_seed(0)
    widths = (8, 8, 8 if kind == "flash" else 4)
    return [torch.randn(2, 5, 3, width, dtype=torch.float64).transpose(1, 2) for width in widths]


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_attention_and_its_derivative(kind: str, causal: bool, scale: float | None) -> None:
    inputs = [one.requires_grad_() for one in drawn(kind)]
    expected = F.scaled_dot_product_attention(*inputs, is_causal=causal, scale=scale)
    grad = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, inputs, grad)
    with on_cpu(), torch.no_grad():
        saved = attend(kind, inputs, causal, scale)
        found = differentiate(kind, grad, inputs, saved, causal, scale)
    # logsumexp is saved in float32
    for one, right in zip((saved[0], *found), (expected, *gradients), strict=True):
        torch.testing.assert_close(one, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_is_what_is_read(kind: str, place: int) -> None:
    """Else a buffer that was overwritten between forward and backward would not show."""
    inputs = drawn(kind)
    with on_cpu():
        saved = attend(kind, inputs, True, None)
        grad = torch.ones_like(saved[0])
        before = differentiate(kind, grad, inputs, saved, True, None)[0]
        saved[place].add_(1.0)
        assert not torch.allclose(differentiate(kind, grad, inputs, saved, True, None)[0], before)


@pytest.mark.parametrize("kind", KINDS)
def test_afterwards_a_cpu_has_no_such_operator(kind: str) -> None:
    with on_cpu():
        attend(kind, drawn(kind), True, None)
    with pytest.raises(NotImplementedError):
        attend(kind, drawn(kind), True, None)
