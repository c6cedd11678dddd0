# SPDX-License-Identifier: Apache-2.0
"""Attention as a GPU has it, on the CPU: operators that a program calls and that a CPU build does not have.

In:    nothing; torch is imported.
Out:   `on_cpu()`: within the block, flash and efficient attention, forward and backward, take tensors on the CPU.
Never: computes with anything but what it is given: the backward works from the saved output and logsumexp, so that a
       buffer that was overwritten shows; gives results of other shapes or strides than the operator's own meta kernel.

Reference: Dao et al., FlashAttention-2 (arXiv 2307.08691), section 2.3: P = exp(S - L), dV = P'dO, dP = dO V',
D = rowsum(dO * O), dS = P * (dP - D), dQ = scale dS K, dK = scale dS'Q.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

ATEN = torch.ops.aten
Tensor = torch.Tensor
Results = tuple[Any, ...]


@contextmanager
def on_cpu() -> Iterator[None]:
    """See the module's contract."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name, function in OPERATORS.items():
            library.impl(name, function, "CPU")
        yield


def flash(
    q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False, *_: Any, **named: Any
) -> Results:
    """`_scaled_dot_product_flash_attention`."""
    assert not dropout
    as_theirs = ATEN._scaled_dot_product_flash_attention(*_shapes(q, k, v), dropout, causal, **named)
    return _filled(as_theirs, *_forward(q, k, v, causal, named.get("scale")))


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, *rest: Any, **named: Any
) -> Results:
    """`_scaled_dot_product_flash_attention_backward`."""
    saved = (grad, q, k, v, out, logsumexp)
    as_theirs = ATEN._scaled_dot_product_flash_attention_backward(*_shapes(*saved, *rest), **named)
    return _filled(as_theirs, *_backward(*saved, causal=rest[5], scale=named.get("scale")))


def efficient(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, logsumexp: bool, dropout: float = 0.0, causal: bool = False,
    **named: Any,
) -> Results:  # fmt: skip
    """`_scaled_dot_product_efficient_attention`."""
    assert bias is None
    assert not dropout
    as_theirs = ATEN._scaled_dot_product_efficient_attention(
        *_shapes(q, k, v), bias, logsumexp, dropout, causal, **named
    )
    return _filled(as_theirs, *_forward(q, k, v, causal, named.get("scale")))


def efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, logsumexp: Tensor, *rest: Any,
    **named: Any,
) -> Results:  # fmt: skip
    """`_scaled_dot_product_efficient_attention_backward`."""
    causal = rest[4] if len(rest) > 4 else False
    as_theirs = ATEN._scaled_dot_product_efficient_attention_backward(
        *_shapes(grad, q, k, v, bias, out, logsumexp, *rest), **named
    )
    return _filled(as_theirs, *_backward(grad, q, k, v, out, logsumexp, causal=causal, scale=named.get("scale")))


OPERATORS: dict[str, Callable[..., Results]] = {
    "_scaled_dot_product_flash_attention": flash,
    "_scaled_dot_product_flash_attention_backward": flash_backward,
    "_scaled_dot_product_efficient_attention": efficient,
    "_scaled_dot_product_efficient_attention_backward": efficient_backward,
}


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float | None) -> tuple[Tensor, float]:
    """[B, H, Tq, Tk] in float32 or wider, masked; and the scale."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = _wide(q) @ _wide(k).mT * scale
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, -torch.inf) if causal else scores), scale


def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    """Output [B, H, Tq, .] and logsumexp [B, H, Tq]."""
    scores, _ = _scores(q, k, causal, scale)
    return scores.softmax(-1) @ _wide(v), scores.logsumexp(-1)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values: see the module's reference."""
    scores, scale = _scores(q, k, causal, scale)
    grad, out = _wide(grad), _wide(out)
    weights = (scores - logsumexp[..., : q.shape[-2], None]).exp()
    into_scores = weights * (grad @ _wide(v).mT - (grad * out).sum(-1, keepdim=True)) * scale
    return into_scores @ _wide(k), into_scores.mT @ _wide(q), weights.mT @ grad


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _shapes(*given: Any) -> list[Any]:
    return [one.to("meta") if isinstance(one, Tensor) else one for one in given]


def _filled(as_theirs: Results, *values: Tensor) -> Results:
    """Results in the layout of the operator's own: `values` where there are some, padded; zeros elsewhere."""
    found = []
    for number, one in enumerate(as_theirs):
        if isinstance(one, Tensor):
            empty = torch.empty_strided(one.shape, one.stride(), dtype=one.dtype)
            one = empty.zero_()
            if number < len(values):
                one[tuple(map(slice, values[number].shape))].copy_(values[number])
        found.append(one)
    return tuple(found)
