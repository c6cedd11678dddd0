# SPDX-License-Identifier: Apache-2.0
"""The attention of a rank as one fused kernel, for models of transformers that are captured and not run.

In:    queries, keys and values as transformers hands them to an attention function: [B, heads, T, width].
Out:   [B, T, heads, width], by an operator of our own that the cost model has a formula for.
Never: computes anything; nothing runs these operators. Models attention sinks, or masks other than the causal one and a
       sliding window.

On the device of a capture PyTorch falls back to plain products and a softmax over all pairs of tokens. Kernels of
engines do neither: they read keys and values once, also if several heads share them or values are narrower than keys
(latent attention), and skip the masked part. Hence the operators of our own.

In decode the operator reads a cache, a buffer of the attention module. For latent attention the cache holds the
latents, as in engines; the number of products with `kv_b` is the same either way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from farskip_compile._compat.costs import register_flop_formula

NAME = "farskip_fused"
"""The function's name in transformers."""
CACHED_KEYS, CACHED_VALUES = "farskip_cached_keys", "farskip_cached_values"
"""Buffers of an attention module, [B, heads, T, width]; latent attention has only the first."""
BACKWARD = 2.5
"""FLOPs of the backward over those of the forward, as torch counts flash attention: five products, not two."""

WHOLE = 0
"""The window of an attention to all previous tokens."""


@torch.library.custom_op("farskip::causal_attention", mutates_args=())
def causal_attention(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Return [B, heads, T, width of a value]; each token reads the last `window` tokens with itself, or all."""
    raise NotImplementedError("for captures: nothing runs it")


@torch.library.custom_op("farskip::causal_attention_backward", mutates_args=())
def causal_attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values."""
    raise NotImplementedError("for captures: nothing runs it")


@torch.library.custom_op("farskip::cached_attention", mutates_args=())
def cached_attention(query: Tensor, cached: Tensor, key: Tensor, value: Tensor, values: Tensor | None) -> Tensor:
    """Return [B, heads, T, width of a value]: new tokens over a cache and themselves."""
    raise NotImplementedError("for captures: nothing runs it")


@causal_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    return query.new_empty(*query.shape[:3], value.shape[-1])


@causal_attention_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@cached_attention.register_fake
def _(query: Tensor, cached: Tensor, key: Tensor, value: Tensor, values: Tensor | None) -> Tensor:
    return query.new_empty(*query.shape[:3], value.shape[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    found = torch.ops.farskip.causal_attention_backward(gradient, *ctx.saved_tensors, ctx.window)
    return (*found, None)


causal_attention.register_autograd(_gradients, setup_context=_keep)


def pairs(tokens: int, window: int) -> int:
    """Return the number of pairs of a token and a token that it reads."""
    width = min(window or tokens, tokens)
    return width * (width + 1) // 2 + (tokens - width) * width


@register_flop_formula(torch.ops.farskip.causal_attention)
def _causal_flops(query: Any, key: Any, value: Any, window: int, *_: Any, **__: Any) -> int:
    batch, heads, tokens, width = query
    return 2 * int(batch * heads) * pairs(tokens, window) * int(width + value[-1])


@register_flop_formula(torch.ops.farskip.causal_attention_backward)
def _backward_flops(gradient: Any, query: Any, key: Any, value: Any, window: int, *_: Any, **__: Any) -> int:
    return int(BACKWARD * _causal_flops(query, key, value, window))


@register_flop_formula(torch.ops.farskip.cached_attention)
def _cached_flops(query: Any, cached: Any, *_: Any, **__: Any) -> int:
    batch, heads, tokens, _width = query
    return 4 * int(batch * heads * tokens * cached[2] * cached[3])


def fused_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Return the attention [B, T, heads, width] and None: an attention function of transformers."""
    cached = getattr(module, CACHED_KEYS, None)
    if cached is not None:
        values = getattr(module, CACHED_VALUES, None)
        out = torch.ops.farskip.cached_attention(query, cached, key, value, values)
    else:
        window = getattr(module, "sliding_window", None) or WHOLE
        out = torch.ops.farskip.causal_attention(query, key, value, window)
    return out.transpose(1, 2).contiguous(), None


def reads_cache(node: fx.Node) -> bool:
    """Return whether a node of a captured graph is an attention over a cache."""
    return node.target is torch.ops.farskip.cached_attention.default


def register_attention() -> str:
    """Register the attention function, which needs no mask, in transformers, and return its name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, fused_attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    return NAME


def give_caches(model: nn.Module, batch: int, length: int) -> None:
    """Give each attention of `model`, which is cut for one rank, a cache of `length` tokens for `batch` sequences.

    A sliding window bounds the cache.
    """
    for module in model.modules():
        parts = {name: getattr(module, name, None) for name in ("kv_a_proj_with_mqa", "k_proj", "v_proj")}
        latents, keys, values = parts.values()
        tokens = min(length, getattr(module, "sliding_window", None) or length)
        if isinstance(latents, nn.Linear):
            cache = latents.weight.new_empty(batch, 1, tokens, latents.out_features)
            module.register_buffer(CACHED_KEYS, cache, persistent=False)
        elif isinstance(keys, nn.Linear) and isinstance(values, nn.Linear):
            width = int(module.head_dim)  # type: ignore[arg-type]
            for name, part in ((CACHED_KEYS, keys), (CACHED_VALUES, values)):
                cache = part.weight.new_empty(batch, part.out_features // width, tokens, width)
                module.register_buffer(name, cache, persistent=False)
