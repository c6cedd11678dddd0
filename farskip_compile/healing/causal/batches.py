# SPDX-License-Identifier: Apache-2.0
"""What a batch is, how a stream of them is traversed, and how a causal model is called with one.

In:    an iterable of batches: token ids [B, T], or a mapping with `input_ids` and, if given, `attention_mask` and
       `labels` [B, T], in which -100 is not a target; a module that maps token ids [B, T] to logits [B, T, V], or to
       something with `.logits`.
Out:   `Batch`es on a device; `Feed`: batches without end, with a position from which a later run can continue; logits.
Never: reorders, pads or drops anything; changes the module.

A feed starts the iterable anew when it ends. Its position is an epoch, the number of batches consumed in it, and the
state of torch's generator when the epoch began, from which a `DataLoader` draws its order. To continue means to draw
the same order and to skip what was consumed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from farskip_compile.errors import ConfigError

IGNORED = -100
"""In `labels`: this token is not a target (torch.nn.functional.cross_entropy, transformers)."""


@dataclass(frozen=True)
class Batch:
    """Token ids and what of them is predicted."""

    inputs: dict[str, torch.Tensor]
    """What the model is called with: `input_ids` [B, T] and masks."""
    targets: torch.Tensor
    """[B, T - 1]: the token that follows each position but the last, or `IGNORED`."""

    @property
    def tokens(self) -> int:
        """How many targets there are."""
        return int((self.targets != IGNORED).sum())


def as_batch(found: Any, device: torch.device) -> Batch:
    """An item of the data, on `device`.

    Raises:
        ConfigError: it is not a batch.
    """
    given = dict(found) if isinstance(found, Mapping) else {"input_ids": found}
    ids = given.get("input_ids")
    if isinstance(ids, list | tuple) and len(ids) == 1:  # torch.utils.data.TensorDataset
        ids = ids[0]
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.is_floating_point() or ids.shape[1] < 2:
        shape = f" of shape {list(ids.shape)}" if isinstance(ids, torch.Tensor) else ""
        raise ConfigError(
            f"the data gave {type(found).__name__}{shape}, which is not a batch of token ids",
            way_out="token ids [batch, tokens], or a mapping with input_ids, attention_mask, labels",
        )
    ids = ids.to(device, torch.long)
    labels, mask = given.get("labels"), given.get("attention_mask")
    targets = (ids if labels is None else labels.to(device, torch.long))[:, 1:]
    inputs = {"input_ids": ids}
    if mask is not None:
        inputs["attention_mask"] = mask.to(device)
        targets = targets.masked_fill(inputs["attention_mask"][:, 1:] == 0, IGNORED)
    return Batch(inputs, targets)


@dataclass
class Position:
    """How far a feed has advanced."""

    epoch: int = 0
    taken: int = 0
    """Batches consumed in this epoch."""
    generator: torch.Tensor | None = None
    """State of torch's generator when the epoch began."""


class Feed:
    """Batches without end, on `device`, from an iterable; `position`: where to continue."""

    def __init__(self, data: Iterable[Any], device: torch.device, position: Position | None = None) -> None:
        self.data, self.device = data, device
        self.position = Position()
        self._batches: Iterator[Any] | None = None
        self._gave_any = False
        if position is not None and position.generator is not None:
            torch.set_rng_state(position.generator)
            self.position.epoch = position.epoch
            self._begin()
            for _ in range(position.taken):
                if self._next_or_none() is None:
                    break

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            ConfigError: the data can't be traversed again, or is empty.
        """
        if self._batches is None:
            self._begin()
        found = self._next_or_none()
        if found is None:
            self.position.epoch += 1
            self._begin()
            found = self._next_or_none()
        if found is None:
            seen = "ended, and can't be traversed again" if self._gave_any else "is empty"
            raise ConfigError(
                f"the data {seen}", way_out="a list, a DataLoader or another iterable that starts anew; or fewer steps"
            )
        return as_batch(found, self.device)

    def _begin(self) -> None:
        self.position.generator, self.position.taken = torch.get_rng_state(), 0
        for one in (self.data, getattr(self.data, "sampler", None)):  # torch.utils.data.DistributedSampler
            if callable(set_epoch := getattr(one, "set_epoch", None)):
                set_epoch(self.position.epoch)
        self._batches = iter(self.data)

    def _next_or_none(self) -> Any:
        assert self._batches is not None
        found = next(self._batches, None)
        self.position.taken += found is not None
        self._gave_any |= found is not None
        return found


def arguments(batch: Batch, model: nn.Module) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Positional and named arguments for the forward of `model`.

    Raises:
        ConfigError: the batch is padded, and the model takes no mask.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    names = {one.name for one in parameters}
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
    inputs: dict[str, Any] = dict(batch.inputs)
    args: tuple[torch.Tensor, ...] = ()
    if not takes_any and "input_ids" not in names:
        args = (inputs.pop("input_ids"),)
    elif takes_any or "use_cache" in names:
        inputs["use_cache"] = False  # a key-value cache is of no use where all positions are known (transformers)
    if not takes_any and (unknown := inputs.keys() - names):
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
    """`function`, which is called as `model` is, as a function of a batch that returns logits."""

    def call(batch: Batch) -> torch.Tensor:
        args, kwargs = arguments(batch, model)
        return logits_of(function(*args, **kwargs))

    return call
