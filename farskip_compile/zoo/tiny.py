"""Build a tiny random model of any family, with the structure that its configuration has by default.

Contract: comes in a `Family`; out comes its model in eval mode, with random weights that depend on the seed alone, a
few layers that stand for all kinds, eight experts of which two are used. The global random state is left as it was.
A family that can't be built or run raises `CannotBuild` with the reason and the line of the family's source.

1. Take the defaults of the configuration's fields, shrink each by its role (`sizes`), cut per-layer fields (`layers`).
   What the class derives by itself, it derives again.
2. Build the model, give visible values to parameters that start out constant, and run it once.
3. If that fails, try other sizes: some classes allow one expert per token only, or as many key heads as heads.
"""

from __future__ import annotations

import dataclasses
import traceback
from typing import Any

import torch
from torch import nn

from farskip_compile.errors import FarSkipError, Where
from farskip_compile.zoo.families import Family
from farskip_compile.zoo.layers import per_layer, with_named_kinds
from farskip_compile.zoo.sizes import Sizes, shrink

NOISE = 0.1
"""Standard deviation of what is added to constant parameters."""


class CannotBuild(FarSkipError):
    """No tiny model of this family: its class can't be imported, or does not run with the sizes tried."""


def build_tiny(family: Family, layers: int = 4, seed: int = 0) -> nn.Module:
    """A tiny random model of `family`, in eval mode.

    Args:
        family: from `moe_families()`.
        layers: how many; up to two more if the family has more kinds of layers.
        seed: of the weights.
    """
    if family.reason is not None:
        raise CannotBuild(f"{family.class_name} can't be imported: {family.reason}", way_out="install what is missing")
    model_class, config_class = family.load()
    sizes = Sizes(layers=layers)
    failure: Exception | None = None
    for attempt in (sizes, dataclasses.replace(sizes, top_k=1), dataclasses.replace(sizes, experts=16)):
        try:
            config = tiny_config(config_class, attempt)
            return _checked(_built(model_class, config, seed), attempt)
        except Exception as error:  # whatever a model's own code raises
            failure = failure or error
    assert failure is not None
    raise CannotBuild(
        f"{family.class_name}: {type(failure).__name__}: {failure}",
        way_out="build the model by hand, or use another version of transformers",
        where=Where(source=_line(failure)),
    ) from failure


def tiny_config(config_class: type[Any], sizes: Sizes) -> Any:
    """A configuration of this class, with the default's structure and tiny sizes."""
    default = config_class()
    # not by getattr: a value that differs from layer to layer may not be read that way
    values = {field.name: vars(default).get(field.name) for field in dataclasses.fields(config_class)}
    length = getattr(default, "num_hidden_layers", 0)
    listed = per_layer(values, length)
    chosen = listed.chosen(sizes.layers)
    sizes = dataclasses.replace(sizes, layers=len(chosen))
    cut = with_named_kinds(listed.cut(chosen), values)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        value = values[field.name]
        if hasattr(value, "sub_configs"):
            given[field.name] = tiny_config(type(value), sizes)
        elif field.name in cut:
            entries = cut[field.name]
            given[field.name] = entries if field.name in listed.numbers else shrink(field.name, entries, values, sizes)
        elif field.default is not None or value is None:
            small = shrink(field.name, value, values, sizes)
            if small is not value and small != value:
                given[field.name] = small
    overrides = default.to_dict().get("per_layer_config") or {}
    if overrides:
        given["per_layer_config"] = _cut_overrides(overrides, chosen, values, sizes)
    if "use_cache" in values:
        given["use_cache"] = False
    return config_class(**given)


def _cut_overrides(overrides: dict[Any, Any], chosen: list[int], values: Any, sizes: Sizes) -> dict[int, Any]:
    by_number = {int(number): entries for number, entries in overrides.items()}
    return {
        place: {k: shrink(k, v, values, sizes) for k, v in by_number[number].items()}
        for place, number in enumerate(chosen)
        if number in by_number
    }


def _built(model_class: type[Any], config: Any, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = model_class(config).eval()
        _unhide(model)
    return model


@torch.no_grad()
def _unhide(model: nn.Module) -> None:
    """Add noise to constants: a weight of one or a gate of zero hides what it multiplies."""
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point() and tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all()):
            tensor.add_(torch.randn(tensor.shape) * NOISE)


def _checked(model: nn.Module, sizes: Sizes) -> nn.Module:
    ids = torch.arange(20).view(2, 10) * 5 % sizes.vocabulary
    with torch.no_grad():
        logits = model(ids).logits
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError("logits are not finite")
    return model


def _line(error: Exception) -> str | None:
    """The innermost line of a model's own source."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/models/" in f.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
