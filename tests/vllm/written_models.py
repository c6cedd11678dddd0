# SPDX-License-Identifier: Apache-2.0
"""Models as vLLM writes them, in several styles, and their FarSkip forms by hand.

Contract: `Model(Style(...))` is traced to a graph like those that vLLM makes of Qwen3-MoE, Mixtral, gpt-oss or
DeepSeek-V3, on a CPU or for a GPU. `by_hand` computes the FarSkip form from the same weights, without any of these
operators' graphs, and shares no code with what is tested: plain sums of what sub-blocks give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.vllm import fake_operators as fake

WIDTH, HEADS, HEAD, EXPERTS, HIDDEN, VOCABULARY, LATENT = 16, 2, 8, 4, 8, 32, 8
EPSILON = 1e-6


@dataclass(frozen=True)
class Style:
    """How a model is written."""

    layers: int = 3
    dense: int = 0
    """Layers that have a feed-forward network instead of experts, at the beginning."""
    shared: bool = False
    latent: bool = False
    """Attention as in DeepSeek-V3."""
    fused: bool = True
    """Add and norm in one operator, as for a GPU; else written out, as on a CPU."""
    linear: str = "plain"
    """`plain`, through a `handle`, or `quantised`."""
    experts: str = "opaque"
    """`opaque`: the router is inside; `open`: a kernel with a buffer, after `topk`; `schema`: one that no list has."""
    ranks: bool = False
    """All-reduces after the attention and after the experts."""
    float_type: torch.dtype = torch.float64


class Linear(nn.Module):
    """A product, as vLLM's layers call it."""

    def __init__(self, rows: int, columns: int, style: Style) -> None:
        super().__init__()
        self.style = style
        weight = torch.randn(columns, rows, dtype=style.float_type) / rows**0.5
        if style.linear == "quantised":
            self.scale = nn.Parameter(torch.full((1, columns), 0.02, dtype=torch.float32), requires_grad=False)
            whole = (weight.t() / 0.02).round().clamp(-127, 127)
            self.weight = nn.Parameter(whole.to(torch.int8), requires_grad=False)
            self.given = nn.Parameter(torch.tensor(0.05), requires_grad=False)
        elif style.linear == "handle":
            self.weight = weight
            self.handle = torch.tensor(len(fake.HANDLES))
            fake.HANDLES.append(weight)
        else:
            self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.style.linear == "plain":
            return F.linear(x, self.weight)
        out = torch.empty((x.shape[0], self.columns), dtype=x.dtype)
        if self.style.linear == "handle":
            torch.ops._C.onednn_mm(out, x.reshape(-1, x.shape[-1]), None, self.handle)
            return out
        whole = torch.empty_like(x, dtype=torch.int8)
        torch.ops._C.static_scaled_int8_quant(whole, x, self.given, None)
        torch.ops._C.cutlass_scaled_mm(out, whole, self.weight, self.given, self.scale, None)
        return out

    @property
    def columns(self) -> int:
        return self.weight.shape[1] if self.style.linear == "quantised" else self.weight.shape[0]

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """The same by hand."""
        if self.style.linear == "plain":
            return F.linear(x, self.weight)
        if self.style.linear == "handle":
            return x @ self.weight.t()
        whole = (x / self.given).round().clamp(-128, 127).to(torch.int8)
        product = (whole.to(torch.float32) * self.given) @ (self.weight.to(torch.float32) * self.scale)
        return product.to(x.dtype)


class Norm(nn.Module):
    """`norm(x)`, or `norm(x, residual)` for the norm of their sum, and the sum."""

    def __init__(self, style: Style, width: int = WIDTH) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width, dtype=style.float_type) + 0.5)
        self.fused = style.fused

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if self.fused and residual is not None:
            return torch.ops.vllm_ir.fused_add_rms_norm.maybe_inplace(x, residual, self.weight.data, EPSILON, None)
        if self.fused:
            return torch.ops.vllm_ir.rms_norm(x, self.weight.data, EPSILON, None)
        if residual is None:
            return fake.rms_norm(x, self.weight.data, EPSILON)
        total = fake.widened(x) + fake.widened(residual)
        return fake.rms_norm(total, self.weight.data, EPSILON).to(x.dtype), total.to(x.dtype)

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        return fake.rms_norm(x, self.weight, EPSILON)


class Attention(nn.Module):
    def __init__(self, style: Style, name: str) -> None:
        super().__init__()
        self.style, self.name = style, name
        self.qkv = Linear(WIDTH, 3 * HEADS * HEAD, style)
        self.o = Linear(HEADS * HEAD, WIDTH, style)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).split([HEADS * HEAD] * 3, dim=-1)
        output = torch.empty(q.shape, dtype=q.dtype)
        q, k, v, flat = (one.view(-1, HEADS, HEAD) for one in (q, k, v, output))
        after = torch.ops.vllm.unified_kv_cache_update(k, v, self.name)
        torch.ops.vllm.unified_attention_with_output(q, k, v, flat, self.name, kv_cache_dummy_dep=after)
        return _reduced(self.o(flat.reshape(-1, HEADS * HEAD)), self.style)

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (one.reshape(-1, HEADS, HEAD) for one in self.qkv.plain(x).chunk(3, -1))
        return self.o.plain(fake.attend(q, k, v).reshape(-1, HEADS * HEAD))


class LatentAttention(nn.Module):
    """Keys and values are made of few numbers for each token, inside of the operator."""

    def __init__(self, style: Style, name: str) -> None:
        super().__init__()
        self.style, self.name = style, name
        self.q, self.kv = Linear(WIDTH, HEADS * HEAD, style), Linear(WIDTH, LATENT + HEAD // 2, style)
        self.norm = Norm(style, LATENT)
        self.o = Linear(HEADS * HEAD, WIDTH, style)
        self.register_buffer("scale", torch.tensor(1.0))
        self.inside = torch.randn(LATENT, 2 * HEADS * HEAD, dtype=style.float_type)
        fake.LAYERS[name] = self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        latent, rope = self.kv(x).split([LATENT, HEAD // 2], dim=-1)
        latent, rope = self.norm(latent), rope.unsqueeze(1)
        q = self.q(x).view(-1, HEADS, HEAD)
        q[..., HEAD // 2 :] = q[..., HEAD // 2 :] * 0.5  # rotated in place
        output = torch.empty((x.shape[0], HEADS * HEAD), dtype=x.dtype)
        after = torch.ops.vllm.unified_mla_kv_cache_update(latent, rope, self.name, "auto", self.scale)
        torch.ops.vllm.unified_mla_attention_with_output(q, latent, rope, output, self.name, kv_cache_dummy_dep=after)
        return _reduced(self.o(output.reshape(-1, HEADS * HEAD)), self.style)

    def attend(self, q: torch.Tensor, latent: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
        keys, values = (latent @ self.inside).view(-1, HEADS, 2 * HEAD).split(HEAD, -1)
        keys = torch.cat([keys[..., HEAD // 2 :], rope.expand(-1, HEADS, -1)], -1)
        return fake.attend(q, keys, values)

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        latent, rope = self.kv.plain(x).split([LATENT, HEAD // 2], dim=-1)
        q = self.q.plain(x).reshape(-1, HEADS, HEAD)
        q = torch.cat([q[..., : HEAD // 2], q[..., HEAD // 2 :] * 0.5], -1)
        return self.o.plain(self.attend(q, self.norm.plain(latent), rope.unsqueeze(1)).reshape(-1, HEADS * HEAD))


class Dense(nn.Module):
    def __init__(self, style: Style) -> None:
        super().__init__()
        self.style = style
        self.up, self.down = Linear(WIDTH, 2 * HIDDEN, style), Linear(HIDDEN, WIDTH, style)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up(x)
        if self.style.fused:
            out = torch.empty((x.shape[0], HIDDEN), dtype=x.dtype)
            torch.ops._C.silu_and_mul(out, up)
        else:
            out = F.silu(up[..., :HIDDEN]) * up[..., HIDDEN:]
        return self.down(out)

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.up.plain(x).chunk(2, -1)
        return self.down.plain(F.silu(gate) * up)


class Experts(nn.Module):
    """Routed experts, perhaps beside shared ones."""

    def __init__(self, style: Style, name: str) -> None:
        super().__init__()
        self.style, self.name = style, name
        self.gate = Linear(WIDTH, EXPERTS, Style(linear="plain", float_type=style.float_type))
        self.w13 = nn.Parameter(torch.randn(EXPERTS, 2 * HIDDEN, WIDTH, dtype=style.float_type) / WIDTH**0.5)
        self.w2 = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN, dtype=style.float_type) / HIDDEN**0.5)
        self.beside = Dense(style) if style.shared else None
        fake.LAYERS[name] = self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(-1, WIDTH)
        if self.style.experts == "opaque" and self.beside is not None:
            shared, routed = torch.ops.vllm.moe_forward_shared(x, self.gate(x), x, None, self.name, 0)
            return _reduced(shared + routed, self.style)
        logits = self.gate(x)
        shared = self.beside(x) if self.beside is not None else None
        routed = self._routed(x, logits)
        return _reduced(routed if shared is None else shared + routed, self.style)

    def _routed(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if self.style.experts == "opaque":
            return torch.ops.vllm.moe_forward(x, logits, None, None, self.name, 0)
        gates, ids = logits.softmax(-1).topk(2, dim=-1)
        if self.style.experts == "schema":
            return torch.ops.vllm.triton_fused_experts(x, self.w13, self.w2, gates, ids)
        output = torch.empty_like(x)
        torch.ops._C.cpu_fused_moe(output, x, self.w13, self.w2, None, None, gates, ids, False, "silu", "vec")
        return output

    def routed(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return fake.experts(x, self.w13, self.w2, *logits.softmax(-1).topk(2, dim=-1))

    def shared(self, x: torch.Tensor) -> torch.Tensor:
        return self.beside.plain(x)

    def plain(self, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        shared = self.beside.plain(x) if self.beside is not None else None
        return shared, self.routed(x, self.gate.plain(x))


def _reduced(value: torch.Tensor, style: Style) -> torch.Tensor:
    return torch.ops.vllm.all_reduce(value, group_name="tp:0") if style.ranks else value


class Layer(nn.Module):
    def __init__(self, style: Style, index: int) -> None:
        super().__init__()
        attention = LatentAttention if style.latent else Attention
        self.input_layernorm, self.post_attention_layernorm = Norm(style), Norm(style)
        self.self_attn = attention(style, f"layers.{index}.attn.{id(self)}")
        self.mlp = Dense(style) if index < style.dense else Experts(style, f"layers.{index}.mlp.{id(self)}")

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual = hidden
            hidden = self.input_layernorm(hidden)
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        hidden, residual = self.post_attention_layernorm(self.self_attn(hidden), residual)
        hidden = self.mlp(hidden)
        if isinstance(self.mlp, Dense):
            hidden = _reduced(hidden, self.mlp.style)
        return hidden, residual


class Model(nn.Module):
    def __init__(self, style: Style) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Parameter(torch.randn(VOCABULARY, WIDTH, dtype=style.float_type))
        self.layers = nn.ModuleList(Layer(style, index) for index in range(style.layers))
        self.norm = Norm(style)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden, residual = F.embedding(ids, self.embed_tokens), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        return self.norm(hidden, residual)[0]


def by_hand(model: Model, ids: torch.Tensor, connectivity: str) -> torch.Tensor:
    """The FarSkip form: attention reads the stream without the routed experts of the layer before (`full`,
    `attention`), the feed-forward part reads it without the attention of its layer (`full`, `mlp`)."""
    stream = early = F.embedding(ids, model.embed_tokens)
    for layer in model.layers:
        read = early if connectivity in ("full", "attention") else stream
        attended = layer.self_attn.plain(layer.input_layernorm.plain(read))
        read = stream if connectivity in ("full", "mlp") else attended + stream
        normed = layer.post_attention_layernorm.plain(read)
        stream = attended + stream
        if isinstance(layer.mlp, Dense):
            stream = early = layer.mlp.plain(normed) + stream
            continue
        shared, routed = layer.mlp.plain(normed)
        early = stream if shared is None else shared + stream
        stream = (routed if shared is None else shared + routed) + stream
    return model.norm.plain(stream)
