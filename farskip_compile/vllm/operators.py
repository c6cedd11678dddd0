# SPDX-License-Identifier: Apache-2.0
"""What vLLM's operators are, said with `declare_op`: no graph shows their routers, caches and weights.

In:    nothing; or a graph of vLLM's, for operators that go by their schema.
Out:   declarations, the same in each process.
Never: looks at a model's name, or at a module.

`KINDS` lists operators by name, of both versions that are supported. Quantised products and fused experts have many
names, and new ones in each release: `declare_by_schema` takes an operator of vLLM's namespaces for a product if it is
called one and has the schema of one (one activation, a matrix that the model holds, one result with the activation's
rows), and for routed experts if it is called that and is given chosen indices and a matrix for each expert. What is
neither stays unknown, and unknown operators are errors that name them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import fx

from farskip_compile._compat import OpOverload, OpOverloadPacket, is_module_state, same_dim
from farskip_compile.declare import declare_op
from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.graph.declared import DeclaredKind

KINDS: dict[DeclaredKind, str] = {
    # with a cache that the operator finds by the name of its layer
    "attention": "vllm::unified_attention vllm::unified_attention_with_output vllm::unified_kv_cache_update"
    " vllm::unified_mla_attention vllm::unified_mla_attention_with_output vllm::unified_mla_kv_cache_update",
    "mixer": "vllm::cpu_gdn_attention_core vllm::linear_attention vllm::mamba_mixer vllm::mamba_mixer2"
    " vllm::qwen_gdn_attention_core vllm::short_conv",
    "routed": "vllm::moe_forward vllm::transformers_moe_forward _C::cpu_fused_moe _C::cpu_fused_moe_int8"
    " _C::fused_experts_cpu",
    "dense": "vllm_ir::rms_norm vllm_ir::gelu_and_mul_sparse"
    " _C::rms_norm _C::gemma_rms_norm _C::rotary_embedding"
    " _C::silu_and_mul _C::mul_and_silu _C::gelu_and_mul _C::gelu_tanh_and_mul _C::gelu_new _C::gelu_fast"
    " _C::gelu_quick _C::fatrelu_and_mul _C::swigluoai_and_mul _C::swiglustep_and_mul"
    " _C::static_scaled_fp8_quant _C::static_scaled_int8_quant _C::dynamic_per_token_scaled_fp8_quant"
    " _C::dynamic_scaled_int8_quant _C::per_token_group_fp8_quant _C::per_token_group_quant_int8"
    # their weights are reached through a handle
    " _C::onednn_mm _C::onednn_scaled_mm",
    "reduction": "vllm::all_reduce vllm::reduce_scatter vllm::all_gather farskip::shm_all_reduce",
}
OUTPUTS: dict[str, tuple[DeclaredKind, ...]] = {"vllm::moe_forward_shared": ("dense", "routed")}
"""Operators that return shared and routed experts apart."""

NAMESPACES = ("_C::", "_rocm_C::", "vllm::")
PRODUCT = re.compile(r"(gemm|mm|linear)(_|$)")
EXPERTS = re.compile(r"moe|expert")


def declare() -> None:
    """Declare the operators of `KINDS` and `OUTPUTS`; a second call changes nothing."""
    for kind, names in KINDS.items():
        for name in names.split():
            declare_op(name, kind)
    for name, outputs in OUTPUTS.items():
        declare_op(name, outputs=outputs)


def declare_by_schema(graph: fx.Graph) -> dict[str, DeclaredKind]:
    """Declare operators of `graph` that have the name and the schema of a product or of routed experts, each of them
    wherever it is called; returns those."""
    listed = {name for names in KINDS.values() for name in names.split()} | set(OUTPUTS)
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        name = ops.op_name(node)
        if (
            name.startswith(NAMESPACES)
            and name not in listed
            and isinstance(node.target, OpOverload | OpOverloadPacket)
        ):
            calls.setdefault(name, []).append(node)
    found: dict[str, DeclaredKind] = {}
    for name, nodes in sorted(calls.items()):
        if EXPERTS.search(name) and all(map(_is_given_experts, nodes)):
            found[name] = "routed"
        elif PRODUCT.search(name.split("::")[1]) and all(map(_multiplies_rows, nodes)):
            found[name] = "dense"
    for name, kind in found.items():
        declare_op(name, kind)
    return found


def _is_given_experts(node: fx.Node) -> bool:
    chosen = any(not ops.is_floating(arg) and not _is_held(arg) for arg, _ in _read(node))
    return chosen and any(value.dim() >= 3 and _is_held(arg) for arg, value in _read(node))


def _multiplies_rows(node: fx.Node) -> bool:
    """One activation, a matrix that the model holds, and one result with the rows of the activation."""
    activations = [value for arg, value in _read(node) if not _is_held(arg) and value.dim() > 1 and _is_wide(value)]
    matrices = [value for arg, value in _read(node) if _is_held(arg) and value.dim() == 2]
    results = _results(node)
    if len(activations) != 1 or not matrices or len(results) != 1 or results[0].dim() != activations[0].dim():
        return False
    return all(map(same_dim, results[0].shape[:-1], activations[0].shape[:-1]))


def _is_wide(value: torch.Tensor) -> bool:
    """Scales have one number for each row."""
    return not same_dim(value.shape[-1], 1)


def _read(node: fx.Node) -> Iterator[tuple[fx.Node, torch.Tensor]]:
    """The tensors that `node` is given and does not write."""
    written = effects.mutated_args(node)
    for arg in node.all_input_nodes:
        value = ops.tensor(arg)
        if value is not None and arg not in written:
            yield arg, value


def _results(node: fx.Node) -> list[torch.Tensor]:
    """What `node` returns and what it fills."""
    value = ops.fake(node)
    parts = value if isinstance(value, tuple | list) else [value]
    filled = map(ops.tensor, effects.mutated_args(node))
    return [part for part in (*parts, *filled) if isinstance(part, torch.Tensor)]


def _is_held(node: fx.Node) -> bool:
    """A parameter or buffer of the model, or an image of one."""
    while node.op.startswith("call") and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node.op == "get_attr" or (node.op == "placeholder" and is_module_state(node))
