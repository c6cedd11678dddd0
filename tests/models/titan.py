# SPDX-License-Identifier: Apache-2.0
"""torchtitan's mixture-of-experts models on a CPU, and their FarSkip form written by hand: an oracle.

Contract: `build_deepseek_v3` and `build_qwen3` give the library's own debug models with seeded weights and example
inputs; `EagerForm` is another wiring of a model's own sub-modules and uses nothing of the compiler. torchtitan is
imported when a function is called, not before. What a CPU needs is all in here:

1. `titan()` puts an empty module in place of `torchtitan.distributed.minimal_async_ep` where there is no Triton: that
   dispatcher is made of Triton's kernels, so that importing it fails. The models use another one.
2. `on_cpu()` replaces three things for a while. The library compiles flex attention and the making of its mask apart
   with Inductor; both run here operator by operator, as the compiled model does under `inner="eager"`, so that results
   can be compared bit by bit. And PyTorch refuses flex attention on a CPU where a gradient is needed, since Inductor
   has no such kernel for CPUs; operator by operator there is one.

Apart from that the models differ from the library's debug models in the values of their weights, in the experts' inner
size, and in the number of layers where some are picked.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.attention import flex_attention

Example = tuple[nn.Module, tuple[Any, ...]]
ALL = slice(None)

NEEDS_TRITON = "torchtitan.distributed.minimal_async_ep"
IMPORTED_FROM_IT = (
    "combine_op",
    "dispatch_op",
    "init_buffer",
    "maybe_update_minimal_async_ep_config",
    "MinimalAsyncEPDispatchMetadata",
)


def titan(name: str) -> Any:
    """The module `torchtitan.models.<name>`."""
    if NEEDS_TRITON not in sys.modules and find_spec("triton") is None:
        empty = types.ModuleType(NEEDS_TRITON)
        for attribute in IMPORTED_FROM_IT:
            setattr(empty, attribute, None)
        empty.maybe_update_minimal_async_ep_config = lambda *_: None  # type: ignore[attr-defined]
        sys.modules[NEEDS_TRITON] = sys.modules[f"{NEEDS_TRITON}.api"] = empty
    return import_module(f"torchtitan.models.{name}")


@contextmanager
def on_cpu() -> Iterator[None]:
    """Flex attention operator by operator, with gradients."""
    attention = titan("common.attention")
    with (
        patch.object(attention, "_compiled_create_block_mask", flex_attention.create_block_mask),
        patch.object(attention.FlexAttention, "_compiled_flex_attn", staticmethod(flex_attention.flex_attention)),
        patch.object(flex_attention, "_validate_device", lambda query, key, value: None),
    ):
        yield


def token_ids(seed: int = 0, batch: int = 2, length: int = 10) -> torch.Tensor:
    return torch.randint(0, 2048, (batch, length), generator=torch.Generator().manual_seed(seed))


def build_deepseek_v3(
    layers: slice = ALL, dtype: torch.dtype = torch.float32, sharding: dict[str, bool] | None = None
) -> Example:
    """`debugmodel`: a dense layer, then five with eight experts and shared ones; latent attention.

    Args:
        layers: which of them.
        dtype: of parameters and counters.
        sharding: what the model's `parallelize` has to know; it is not called.
    """
    config = titan("deepseek_v3").model_registry("debugmodel").model
    if sharding is not None:
        titan("deepseek_v3.sharding").set_deepseek_v3_sharding_config(config, **sharding)
    return _build(config, layers, dtype)


def build_qwen3(layers: slice = ALL, dtype: torch.dtype = torch.float32) -> Example:
    """`debugmodel_moe`: eight layers with 64 experts and no shared ones; grouped-query attention."""
    return _build(titan("qwen3").model_registry("debugmodel_moe").model, layers, dtype)


def _build(config: Any, layers: slice, dtype: torch.dtype) -> Example:
    config.layers = config.layers[layers]
    for layer in config.layers:
        if layer.moe is not None:
            layer.moe.routed_experts.inner_experts.hidden_dim = 32
    model = config.build()
    model.init_states()  # rotations and counters too
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        # the library's own start is so small a step from the identity that connections hardly show, and norms are one
        spread = 0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
        nn.init.normal_(parameter, float(parameter.dim() == 1), spread, generator=generator)
    ids = token_ids()
    positions = torch.arange(ids.shape[1]).expand_as(ids).contiguous()
    with on_cpu():
        masks = model.get_attention_masks(positions)
    model = model.double() if dtype is torch.float64 else model  # `to` would make complex rotations real
    return model.eval(), (ids, positions, masks)


class EagerForm(nn.Module):
    """The FarSkip form of a torchtitan decoder, with the layers' own modules, in the order in which they add.

    x is everything, n leaves out the routed output of the layer before.
    """

    def __init__(self, model: nn.Module, connectivity: Literal["full", "attention", "mlp", "none"] = "full") -> None:
        super().__init__()
        self.model = model
        self.early_attention = connectivity in ("full", "attention")
        self.early_mlp = connectivity in ("full", "mlp")

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, masks: Any) -> torch.Tensor:
        model: Any = self.model
        x = n = model.tok_embeddings(ids)  # [B, T, D]
        for layer in model.layers.values():
            read = n if self.early_attention else x
            a = layer.attention(layer.attention_norm(read), masks, positions)
            h = layer.ffn_norm(x if self.early_mlp else x + a)
            x = x + a
            if layer.moe_enabled:
                routed = self._routed(layer.moe, h)
                shared = layer.moe.shared_experts(h) if layer.moe.shared_experts is not None else None
                n = x if shared is None else x + shared
                x = x + (routed if shared is None else routed + shared)
            else:
                x = n = x + layer.feed_forward(h)
        return model.lm_head(model.norm(x))

    @staticmethod
    def _routed(moe: Any, h: torch.Tensor) -> torch.Tensor:
        """The routed experts alone, [B, T, D]; counts their tokens in training, as the model does."""
        scores, experts, _ = moe.router(h, moe.expert_bias_E)
        counts = torch.bincount(experts.flatten(), minlength=moe.router.num_experts)  # [E]
        if moe.training:
            moe.tokens_per_expert_E += counts
        return moe.routed_experts(h, scores, experts, counts)
