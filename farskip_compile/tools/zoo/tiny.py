# SPDX-License-Identifier: Apache-2.0
"""Build a tiny random model of any family, with the structure that its configuration has by default.

Contract: a `Family` comes in; its model goes out in eval mode, with random weights that depend on the seed alone, a few
layers that stand for all kinds, eight experts of which two are used. The global random state is left as it was. A
family that can't be built or run raises `CannotBuild` with the reason and the line of the family's source.

1. Take the defaults of the configuration's fields, shrink each by its role (`sizes`), cut per-layer fields, and mix in
   kinds of layers that the code has and the default does not use (`layers`).
2. Build the model, give visible values to parameters that start out constant, and run it once.
3. If that fails, try without those kinds, with values for numbers that the default leaves open, with one expert per
   token.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn

from farskip_compile.errors import FarSkipError, Where
from farskip_compile.tools.zoo.families import Family, counts_experts
from farskip_compile.tools.zoo.layers import WORDS, mixed, per_layer
from farskip_compile.tools.zoo.sizes import TinySizes, shrink

NOISE = 0.1
"""Standard deviation of what is added to constant parameters."""


class CannotBuild(FarSkipError):
    """No tiny model of this family: its class can't be imported, or does not run with the sizes tried."""


def build_tiny(family: Family, layers: int = 4, seed: int = 0) -> nn.Module:
    """A tiny random model of `family`, in eval mode.

    Args:
        family: of `moe_families`.
        layers: how many; up to two more if the family has more kinds of them.
        seed: of the weights.

    Raises:
        CannotBuild: its class can't be imported, or does not run with the sizes tried.
    """
    if family.reason is not None:
        raise CannotBuild(f"{family.class_name} can't be imported: {family.reason}", way_out="install what is missing")
    model_class, config_class = family.load()
    source = inspect.getsource(inspect.getmodule(model_class) or model_class)
    sizes = TinySizes(layers=layers)
    failure: Exception | None = None
    for attempt, text in product((sizes, replace(sizes, fill=True), replace(sizes, top_k=1)), (source, "")):
        try:
            return _built_and_run(model_class, partial(tiny_config, config_class, attempt, text), seed)
        except Exception as error:  # whatever a model's own code raises
            failure = error if attempt is sizes or failure is None else failure
    assert failure is not None
    raise CannotBuild(
        f"{family.class_name}: {type(failure).__name__}: {failure}",
        way_out="build the model by hand, or use another version of transformers",
        where=Where(source=_line(failure)),
    ) from failure


def tiny_config(config_class: type[Any], sizes: TinySizes, source: str = "") -> Any:
    """A configuration of this class, with the default's structure and tiny sizes.

    Kinds of layers that the `source` of the model knows are mixed in where the default has one kind only.
    """
    default = config_class()
    # not by getattr: a value that differs from layer to layer may not be readable that way
    alias = getattr(config_class, "attribute_map", None) or {}
    values = {field.name: vars(default).get(alias.get(field.name, field.name)) for field in fields(config_class)}
    listed = per_layer(values, getattr(default, "num_hidden_layers", 0))
    chosen = listed.chosen(sizes.layers)
    sizes = replace(sizes, layers=len(chosen))
    cut = listed.cut(chosen)
    if source:
        missing = {name: None for name in values if name.endswith(WORDS) and not values[name]}
        cut.update(mixed(cut | missing, source, len(chosen)))
    given: dict[str, Any] = {}
    for field in fields(config_class):
        value = values[field.name]
        if hasattr(value, "sub_configs"):
            given[field.name] = tiny_config(type(value), sizes)
        elif field.name in cut:
            entries = cut[field.name]
            given[field.name] = entries if field.name in listed.numbers else shrink(field.name, entries, values, sizes)
        else:
            small = shrink(field.name, value, values, sizes)
            if small is not value and small != value:  # the class computes again what is unchanged
                given[field.name] = small
    if any("sliding" in str(kind) for kind in cut.get("layer_types", ())) and not values.get("sliding_window"):
        given["sliding_window"] = sizes.window
        given.update({name: True for name in values if name == "use_sliding_window"})
    overrides = {int(n): entries for n, entries in (default.to_dict().get("per_layer_config") or {}).items()}
    if overrides:
        given["per_layer_config"] = {
            place: {k: shrink(k, v, values, sizes) for k, v in overrides[number].items()}
            for place, number in enumerate(chosen)
            if number in overrides
        }
    return config_class(**given, use_cache=False)


def _built_and_run(model_class: type[Any], make_config: Callable[[], Any], seed: int) -> nn.Module:
    """Build and run; what the code misses on one part of the configuration is copied there from the others."""
    supplied: dict[type[Any], dict[str, Any]] = {}
    while True:
        config = make_config()
        parts = [config, *(vars(config)[name] for name in getattr(config, "sub_configs", None) or {})]
        for part in parts:
            for name, value in supplied.get(type(part), {}).items():
                setattr(part, name, value)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model: nn.Module = model_class(config).eval()
                _unhide(model, config)
            return _checked(model, config)
        except AttributeError as error:
            known = {**(getattr(config, "rope_parameters", None) or {}), **vars(config)}
            name, kind = str(error.name), type(error.obj)
            if name not in known or name in supplied.get(kind, {}) or kind not in map(type, parts):
                raise
            supplied.setdefault(kind, {})[name] = known[name]


@torch.no_grad()
def _unhide(model: nn.Module, config: Any) -> None:
    """Noise for constants: a weight of one or a gate of zero hides what it multiplies, a table of zeros all experts."""
    experts = next((v for k, v in vars(config).items() if counts_experts(k) and isinstance(v, int)), 1)
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.numel() == 0 or not bool((tensor == tensor.flatten()[0]).all()):
            continue
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape) * NOISE)
        elif tensor.dim() == 2 and tensor.shape[0] == config.vocab_size and tensor.shape[1] <= experts:
            # experts by token, which a checkpoint would bring along
            tensor.copy_(torch.rand(tensor.shape[0], experts).argsort(1)[:, : tensor.shape[1]])


def _checked(model: nn.Module, config: Any) -> nn.Module:
    ids = torch.arange(20).view(2, 10) * 5 % config.vocab_size
    with torch.no_grad():
        logits = model(ids).logits
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError("logits are not finite")
    return model


def _line(error: Exception) -> str | None:
    """The innermost line of a model's own source."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/models/" in f.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
