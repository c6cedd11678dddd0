"""How a causal model is called for its logits, compiled or not, with its own parameters or with others.

In:    a module that maps token ids [B, T] to logits [B, T, V], or to something with `.logits`.
Out:   the logits.
Never: changes the module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from farskip_compile.distill.batches import Batch
from farskip_compile.errors import ConfigError

WITHOUT_CACHE = {"use_cache": False}
"""A key-value cache is of no use where all positions are known (transformers)."""


def named_arguments(model: nn.Module) -> frozenset[str] | None:
    """The names of the arguments of `forward`; None: it takes any."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    return frozenset(one.name for one in parameters)


def arguments(batch: Batch, names: frozenset[str] | None) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Positional and named arguments for a model whose forward takes `names`.

    Raises:
        ConfigError: the batch is padded, and the model takes no mask.
    """
    inputs: dict[str, Any] = dict(batch.inputs)
    ids = inputs.pop("input_ids")
    if names is None or "input_ids" in names:
        if names is None or "use_cache" in names:
            inputs |= WITHOUT_CACHE
        args: tuple[torch.Tensor, ...] = ()
        inputs["input_ids"] = ids
    else:
        args = (ids,)
    if names is not None and (unknown := inputs.keys() - names):
        raise ConfigError(
            f"the batches hold {', '.join(sorted(unknown))}, which the model does not take",
            way_out="batches without padding, or a forward with that argument",
        )
    return args, inputs


def logits_of(output: Any) -> torch.Tensor:
    """The logits in what a model returned.

    Raises:
        ConfigError: there are none.
    """
    found = getattr(output, "logits", output)
    if isinstance(found, Mapping):
        found = found.get("logits")
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, torch.Tensor) or found.dim() != 3 or not found.is_floating_point():
        raise ConfigError(
            f"the model returned {type(output).__name__}, in which there are no logits [batch, tokens, vocabulary]",
            way_out="a causal model, or a wrapper that returns its logits",
        )
    return found


def caller(function: Callable[..., Any], model: nn.Module) -> Callable[[Batch], torch.Tensor]:
    """`function`, which is called as `model` is, as a function of a batch."""
    names = named_arguments(model)

    def call(batch: Batch) -> torch.Tensor:
        args, kwargs = arguments(batch, names)
        return logits_of(function(*args, **kwargs))

    return call
