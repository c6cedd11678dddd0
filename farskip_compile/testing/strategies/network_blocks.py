# SPDX-License-Identifier: Apache-2.0
"""What is inside the sub-blocks of a described network: attention, dense and routed feed-forwards, norms.

Contract: the operations are called through an `Eager`, which computes them at once, or a recorder, which writes them
into a graph; so both do the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from farskip_compile.testing.strategies.network import EXPERTS, TOP_K, WIDTH, GeneratedNetwork, NetworkBlock, state


class Eager:
    """Runs what the description says, at once."""

    def call(self, target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Any:
        """The value of a call; a string names a method of the first argument."""
        return getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)

    def parameter(self, name: str, shape: tuple[int, ...]) -> Any:
        """A parameter, always the same for a name."""
        return state(name, shape)

    def mark(self, term: int, value: Any) -> None:
        """Note the last product with a weight on the way to `term`."""


def norm(api: Eager, style: str, x: Any, name: str) -> Any:
    """A norm over the last dimension, as one operator or written out."""
    weight = api.parameter(name, (WIDTH,))
    if style == "rms_norm":
        return api.call(F.rms_norm, x, (WIDTH,), weight)
    if style == "layer_norm":
        return api.call(F.layer_norm, x, (WIDTH,), weight)
    h = api.call("to", x, torch.float64)
    scale = api.call(
        torch.rsqrt, api.call(operator.add, api.call("mean", api.call("pow", h, 2), -1, keepdim=True), 1e-6)
    )
    return api.call(operator.mul, weight, api.call(operator.mul, h, scale))


def _linear(api: Eager, name: str, x: Any, out: int = WIDTH, bias: bool = False) -> Any:
    y = api.call(F.linear, x, api.parameter(f"{name}_weight", (out, WIDTH)))
    return api.call(operator.add, y, api.parameter(f"{name}_bias", (out,))) if bias else y


def _rotate(network: GeneratedNetwork, api: Eager, x: Any) -> Any:
    """Rotary embedding as wide as the stream: a sum of two full-width tensors that is no residual sum."""
    cos, sin = (api.parameter(name, (network.sequence, WIDTH)) for name in ("cos", "sin"))
    half = WIDTH // 2
    first, second = (api.call(operator.getitem, x, (..., part)) for part in (slice(None, half), slice(half, None)))
    turned = api.call(torch.cat, [api.call(operator.neg, second), first], -1)
    return api.call(operator.add, api.call(operator.mul, x, cos), api.call(operator.mul, turned, sin))


def sub_block(network: GeneratedNetwork, api: Eager, block: NetworkBlock, h: Any) -> list[Any]:
    """The terms that `block` makes of the normed stream `h`."""
    name = f"block_{block.index}"
    if block.kind == "attention":
        out = _attention(network, api, block, name, h)
        api.mark(block.first_term, out)
        return [_linear_bias(api, block, name, out)]
    if block.flat or block.kind == "routed":
        h = api.call("view", h, -1, WIDTH)
    outs = []
    if block.kind == "routed":
        outs = _experts(api, block, name, h)
    for number, term in enumerate(block.terms[len(outs) :]):
        hidden = api.call(F.silu, _linear(api, f"{name}_up_{number}", h))
        if block.form == "gated":
            hidden = api.call(operator.mul, hidden, _linear(api, f"{name}_gate_{number}", h))
        down = _linear(api, f"{name}_down_{number}", hidden)
        api.mark(term, down)
        down = _linear_bias(api, block, f"{name}_{number}", down)
        if block.kind == "routed" and number == 1:
            gate = api.call(torch.sigmoid, _linear(api, f"{name}_shared_gate", h, out=1))
            down = api.call(operator.mul, gate, down)
        outs.append(down)
    if block.flat or block.kind == "dense":
        return outs
    return [api.call("view", out, network.batch, network.sequence, WIDTH) for out in outs]


def _linear_bias(api: Eager, block: NetworkBlock, name: str, x: Any) -> Any:
    return api.call(operator.add, x, api.parameter(f"{name}_out_bias", (WIDTH,))) if block.bias else x


def _attention(network: GeneratedNetwork, api: Eager, block: NetworkBlock, name: str, h: Any) -> Any:
    q, k, v = (_linear(api, f"{name}_{part}", h, bias=block.bias) for part in "qkv")
    if block.rope:
        q, k = _rotate(network, api, q), _rotate(network, api, k)
    if block.form == "softmax":
        scores = api.call(operator.mul, api.call(torch.matmul, q, api.call("transpose", k, -1, -2)), 0.5)
        mixed = api.call(torch.matmul, api.call(F.softmax, scores, dim=-1), v)
    elif block.form == "heads":
        heads = []
        for part in (q, k, v):
            split = api.call("view", part, network.batch, network.sequence, 2, WIDTH // 2)
            heads.append(api.call("transpose", split, 1, 2))
        mixed = api.call(F.scaled_dot_product_attention, *heads, is_causal=True)
        mixed = api.call("reshape", api.call("transpose", mixed, 1, 2), network.batch, network.sequence, WIDTH)
    else:
        mixed = api.call(F.scaled_dot_product_attention, q, k, v)
    return _linear(api, f"{name}_o", mixed)


def _experts(api: Eager, block: NetworkBlock, name: str, h: Any) -> list[Any]:
    """Outputs of the routed experts for [tokens, width]: one, or one an expert if they are unrolled."""
    probabilities = api.call(F.softmax, _linear(api, f"{name}_router", h, out=EXPERTS), dim=-1)
    picked = api.call(torch.topk, probabilities, TOP_K, dim=-1)
    weights, ids = api.call(operator.getitem, picked, 0), api.call(operator.getitem, picked, 1)
    term = block.first_term
    if block.form == "unrolled":
        gates = api.call("scatter", api.call(torch.zeros_like, probabilities), 1, ids, weights)
        outs = []
        for expert in range(EXPERTS):
            gate = api.call(operator.getitem, gates, (slice(None), slice(expert, expert + 1)))
            out = _linear(api, f"{name}_expert_{expert}", api.call(F.gelu, h))
            api.mark(term + expert, out)
            outs.append(api.call(operator.mul, *((out, gate) if expert else (gate, out))))
        return outs
    stacked = api.parameter(f"{name}_experts", (EXPERTS, WIDTH, WIDTH))
    if block.form == "stacked":
        gates = api.call("scatter", api.call(torch.zeros_like, probabilities), 1, ids, weights)
        out = api.call(torch.matmul, h, stacked)
        api.mark(term, out)
        scaled = api.call(operator.mul, out, api.call("unsqueeze", api.call("t", gates), -1))
        return [api.call("sum", scaled, 0)]
    if block.form == "picked":
        out = api.call(torch.einsum, "nd,nkde->nke", h, api.call(operator.getitem, stacked, ids))
        api.mark(term, out)
        return [api.call("sum", api.call(operator.mul, out, api.call("unsqueeze", weights, -1)), 1)]
    order = api.call(torch.argsort, api.call("view", ids, -1), stable=True)
    rows = api.call("index_select", h, 0, api.call(operator.floordiv, order, TOP_K))
    experts = api.call(operator.getitem, stacked, api.call(operator.getitem, api.call("view", ids, -1), order))
    out = api.call(torch.bmm, api.call("unsqueeze", rows, 1), experts)
    api.mark(term, out)
    gate = api.call(operator.getitem, api.call("view", weights, -1), order)
    scaled = api.call(operator.mul, api.call("squeeze", out, 1), api.call("unsqueeze", gate, -1))
    back = api.call(operator.getitem, scaled, api.call(torch.argsort, order))
    return [api.call("sum", api.call("view", back, -1, TOP_K, WIDTH), 1)]
