# SPDX-License-Identifier: Apache-2.0
"""vLLM's operators, with its schemas and plain implementations, for processes without vLLM.

Contract: `register` defines them; a second call changes nothing. What vLLM keeps by the name of a layer (weights,
caches) is in `LAYERS`, and what its CPU kernels reach through a handle in `HANDLES`. Two of them do on purpose what
their schemas allow: routed experts write rubbish over their input, and the fused norm over both of its own.
Schemas: vLLM 0.31 and 0.32, on a CPU and, as far as they don't depend on it, on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

LAYERS: dict[str, Any] = {}
"""By name: an object with a method for each operator that looks itself up."""
HANDLES: list[torch.Tensor] = []
SCHEMAS = {
    "vllm_ir": (
        "rms_norm(Tensor x, Tensor? weight, float epsilon, SymInt? variance_size=None) -> Tensor",
        "fused_add_rms_norm(Tensor x, Tensor x_residual, Tensor? weight, float epsilon, SymInt? variance_size=None)"
        " -> (Tensor, Tensor)",
        "fused_add_rms_norm.maybe_inplace(Tensor(a0!) x, Tensor(a1!) x_residual, Tensor? weight, float epsilon,"
        " SymInt? variance_size=None) -> (Tensor, Tensor)",
    ),
    "vllm": (
        "all_reduce(Tensor tensor, str group_name) -> Tensor",
        "unified_kv_cache_update(Tensor key, Tensor value, str layer_name) -> Tensor",
        "unified_attention_with_output(Tensor query, Tensor key, Tensor value, Tensor(a3!) output, str layer_name,"
        " Tensor? output_scale=None, Tensor(a6!)? output_block_scale=None, Tensor? kv_cache_dummy_dep=None) -> ()",
        "unified_mla_kv_cache_update(Tensor kv_c_normed, Tensor k_pe, str layer_name, str kv_cache_dtype,"
        " Tensor k_scale) -> Tensor",
        "unified_mla_attention_with_output(Tensor q, Tensor kv_c_normed, Tensor k_pe, Tensor(a3!) output,"
        " str layer_name, Tensor? output_scale=None, Tensor(a6!)? output_block_scale=None,"
        " Tensor? kv_cache_dummy_dep=None) -> ()",
        "moe_forward(Tensor(a0!) hidden_states, Tensor router_logits, Tensor? shared_experts_input, Tensor? input_ids,"
        " str layer_name, SymInt hidden_dim_unpadded) -> Tensor",
        "moe_forward_shared(Tensor hidden_states, Tensor router_logits, Tensor? shared_experts_input,"
        " Tensor? input_ids, str layer_name, SymInt hidden_dim_unpadded) -> (Tensor, Tensor)",
        # one that `operators.KINDS` does not list: it goes by its schema
        "triton_fused_experts(Tensor x, Tensor w13, Tensor w2, Tensor topk_weights, Tensor topk_ids) -> Tensor",
        "some_mixing_kernel(Tensor x) -> Tensor",
    ),
    "_C": (
        "onednn_mm(Tensor(a0!) c, Tensor a, Tensor? bias, Tensor handler_tensor) -> ()",
        "cpu_fused_moe(Tensor(a0!) output, Tensor input, Tensor w13, Tensor w2, Tensor? w13_bias, Tensor? w2_bias,"
        " Tensor topk_weights, Tensor topk_id, bool skip_weighted, str act, str isa) -> ()",
        "silu_and_mul(Tensor(a0!) out, Tensor input) -> ()",
        # 8 bits and a scale for each column
        "cutlass_scaled_mm(Tensor(a0!) out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor? bias) -> ()",
        "static_scaled_int8_quant(Tensor(a0!) out, Tensor input, Tensor scale, Tensor? azp) -> ()",
    ),
}
_libraries: list[torch.library.Library] = []


def widened(x: torch.Tensor) -> torch.Tensor:
    """In float32 at least; vLLM would compute float64 in float32, too."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def silu_and_mul(out: torch.Tensor, x: torch.Tensor) -> None:
    gate, up = x.chunk(2, -1)
    out.copy_(F.silu(gate) * up)


def static_scaled_int8_quant(out: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, azp: None) -> None:
    out.copy_((x / scale).round().clamp(-128, 127))


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None) -> Any:
    wide = widened(x)
    found = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + epsilon)
    return (found.to(weight.dtype) * weight if weight is not None else found).to(x.dtype)


def fused_add_rms_norm(
    x: torch.Tensor, x_residual: torch.Tensor, weight: torch.Tensor | None, epsilon: float, size: int | None = None
) -> Any:
    total = widened(x) + widened(x_residual)
    return rms_norm(total, weight, epsilon).to(x.dtype), total.to(x.dtype)


def in_place_add_rms_norm(x: torch.Tensor, x_residual: torch.Tensor, *args: Any) -> Any:
    found = fused_add_rms_norm(x, x_residual, *args)
    x.fill_(math.nan)
    x_residual.fill_(math.nan)
    return found


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention of one sequence, [tokens, heads, width] each."""
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, 1).transpose(0, 1) for one in (key, value))
    return F.scaled_dot_product_attention(query.transpose(0, 1), key, value, is_causal=True).transpose(0, 1)


def experts(x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, gates: torch.Tensor, ids: torch.Tensor) -> Any:
    """Each token's chosen experts, one after another."""
    found = torch.zeros_like(x)
    for slot in range(ids.shape[1]):
        up = torch.einsum("td,tfd->tf", x, w13[ids[:, slot]])
        half = up.shape[-1] // 2
        down = torch.einsum("tf,tdf->td", F.silu(up[:, :half]) * up[:, half:], w2[ids[:, slot]])
        found = found + down * gates[:, slot, None]
    return found


def moe_forward(hidden: torch.Tensor, logits: torch.Tensor, *args: Any) -> Any:
    found = LAYERS[args[2]].routed(hidden, logits)
    hidden.fill_(math.nan)
    return found


def moe_forward_shared(hidden: torch.Tensor, logits: torch.Tensor, shared: torch.Tensor, *args: Any) -> Any:
    return LAYERS[args[1]].shared(hidden if shared is None else shared), LAYERS[args[1]].routed(hidden, logits)


def onednn_mm(c: torch.Tensor, a: torch.Tensor, bias: torch.Tensor | None, handle: torch.Tensor) -> None:
    found = a @ HANDLES[int(handle)].t()
    c.copy_(found if bias is None else found + bias)


def cpu_fused_moe(output: torch.Tensor, x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, *args: Any) -> None:
    output.copy_(experts(x, w13, w2, args[2], args[3]))


def cutlass_scaled_mm(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *args: Any) -> None:
    out.copy_((a.to(torch.float32) * args[0]) @ (b.to(torch.float32) * args[1]))


def unified_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, output: torch.Tensor, *args: Any) -> None:
    output.copy_(attend(q, k, v))


def unified_mla_attention(q: torch.Tensor, latent: torch.Tensor, rope: torch.Tensor, output: Any, *args: Any) -> None:
    output.copy_(LAYERS[args[0]].attend(q, latent, rope).reshape(output.shape))


def nothing(*args: Any) -> torch.Tensor:
    return args[0].new_empty(0)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "vllm_ir::rms_norm": rms_norm,
    "vllm_ir::fused_add_rms_norm": fused_add_rms_norm,
    "vllm_ir::fused_add_rms_norm.maybe_inplace": in_place_add_rms_norm,
    "vllm::all_reduce": lambda tensor, group_name: tensor.clone(),
    "vllm::unified_kv_cache_update": nothing,
    "vllm::unified_attention_with_output": unified_attention,
    "vllm::unified_mla_kv_cache_update": nothing,
    "vllm::unified_mla_attention_with_output": unified_mla_attention,
    "vllm::moe_forward": moe_forward,
    "vllm::moe_forward_shared": moe_forward_shared,
    "vllm::triton_fused_experts": experts,
    "vllm::some_mixing_kernel": lambda x: x.cumsum(0),
    "_C::onednn_mm": onednn_mm,
    "_C::cpu_fused_moe": cpu_fused_moe,
    "_C::silu_and_mul": silu_and_mul,
    "_C::cutlass_scaled_mm": cutlass_scaled_mm,
    "_C::static_scaled_int8_quant": static_scaled_int8_quant,
}
RETURNS: dict[str, Callable[..., Any]] = {
    "vllm_ir::rms_norm": lambda x, *_: torch.empty_like(x),
    "vllm_ir::fused_add_rms_norm": lambda x, *_: (torch.empty_like(x), torch.empty_like(x)),
    "vllm_ir::fused_add_rms_norm.maybe_inplace": lambda x, *_: (torch.empty_like(x), torch.empty_like(x)),
    "vllm::all_reduce": lambda x, group_name: torch.empty_like(x),
    "vllm::unified_kv_cache_update": nothing,
    "vllm::unified_mla_kv_cache_update": nothing,
    "vllm::moe_forward": lambda x, *_: torch.empty_like(x),
    "vllm::moe_forward_shared": lambda x, *_: (torch.empty_like(x), torch.empty_like(x)),
    "vllm::triton_fused_experts": lambda x, *_: torch.empty_like(x),
    "vllm::some_mixing_kernel": lambda x: torch.empty_like(x),
}
"""What fake tensors give; all others return nothing."""


def register() -> None:
    """See the module's contract."""
    if _libraries:
        return
    for namespace, schemas in SCHEMAS.items():
        library = torch.library.Library(namespace, "FRAGMENT")
        _libraries.append(library)
        for schema in schemas:
            name = schema.split("(", 1)[0]
            library.define(schema)
            full = f"{namespace}::{name}"
            library.impl(name, _with_keywords(IMPLEMENTATIONS[full]), "CPU")
            torch.library.register_fake(full, _with_keywords(RETURNS.get(full, lambda *_: None)), lib=library)


def _with_keywords(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, *kwargs.values())
