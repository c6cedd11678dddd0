# SPDX-License-Identifier: Apache-2.0
"""Small configurations of torchtitan's trainer in each wiring, by functions such as `--config` names.

Contract: `by_hand` is the FarSkip form, written out for each block and run by the trainer as it runs any other: the
oracle, which uses nothing of the compiler. The others go through the module of docs/torchtitan.md, which the test puts
where Python finds it, or (`..._prepared`) through the trainer's own compilation of blocks.
"""

from __future__ import annotations

from importlib import import_module
from types import MethodType
from typing import Any

import torch
from torch import nn

import farskip_compile
from tests.models.titan import EagerForm
from tests.models.titan_trainer import deepseek_v3, qwen3

CONFIGURATIONS = {"deepseek_v3": deepseek_v3, "qwen3": qwen3}
OPTIONS = {"inner": "eager"}
"""Operators run one by one, in the order of eager mode."""


def __getattr__(name: str) -> Any:
    """`deepseek_v3_full` and so on."""
    model, _, wiring = name.rpartition("_")
    if model not in CONFIGURATIONS or wiring not in WIRINGS:
        raise AttributeError(name)
    return lambda: WIRINGS[wiring](CONFIGURATIONS[model]())


def _plain(config: Any) -> Any:
    return config


def _none(config: Any) -> Any:
    return import_module("farskip_titan").with_farskip(config, "none", **OPTIONS)


def _full(config: Any) -> Any:
    return import_module("farskip_titan").with_farskip(config, "full", **OPTIONS)


def _prepared(config: Any) -> Any:
    return _first(config, lambda model: farskip_compile.regional(model, "full", compile=False, **OPTIONS))


def _byhand(config: Any) -> Any:
    return _first(config, write_out)


def _first(config: Any, prepare: Any) -> Any:
    """`config`, whose model goes through `prepare` before the library parallelizes and compiles it."""
    parallelize = config.model_spec.parallelize_fn

    def prepare_and_parallelize(model: nn.Module, **arguments: Any) -> nn.Module:
        prepare(model)
        return parallelize(model, **arguments)

    config.model_spec.parallelize_fn = prepare_and_parallelize
    return config


def write_out(model: Any) -> None:
    """The FarSkip form: each block hands the next one everything (x), and everything without routed output (n)."""
    *others, last = model.layers.values()
    for layer in (*others, last):
        layer.forward = MethodType(_forward_of_last if layer is last else _forward, layer)


Stream = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def _forward(layer: Any, stream: Stream, masks: Any, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, n = stream if isinstance(stream, tuple) else (stream, stream)
    a = layer.attention(layer.attention_norm(n), masks, positions)
    h = layer.ffn_norm(x)
    x = x + a
    if not layer.moe_enabled:
        x = x + layer.feed_forward(h)
        return x, x
    routed = EagerForm._routed(layer.moe, h)
    if layer.moe.shared_experts is None:
        return x + routed, x
    shared = layer.moe.shared_experts(h)
    return x + (routed + shared), x + shared


def _forward_of_last(layer: Any, stream: Stream, masks: Any, positions: torch.Tensor) -> torch.Tensor:
    return _forward(layer, stream, masks, positions)[0]


WIRINGS = {"plain": _plain, "none": _none, "full": _full, "prepared": _prepared, "byhand": _byhand}
