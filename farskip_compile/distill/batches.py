"""What a batch is, and how a stream of them is gone through.

In:    an iterable of batches: token ids [B, T], or a mapping with `input_ids` and, if given, `attention_mask` and
       `labels` [B, T], of which -100 is no target.
Out:   `Batch`es on a device; `Feed`: batches without end, with a position that a later run can go on from.
Never: reorders, pads or drops anything.

A feed starts the iterable anew when it ends. Its position is an epoch, the batches taken from it, and the state of
torch's generator when the epoch began: what a `DataLoader` draws its order from. To go on means to draw the same order
and to leave out what was taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from farskip_compile.errors import ConfigError

IGNORED = -100
"""In `labels`: this token is no target (torch.nn.functional.cross_entropy, transformers)."""


@dataclass(frozen=True)
class Batch:
    """Token ids and what of them is predicted."""

    inputs: dict[str, torch.Tensor]
    """What the model is called with: `input_ids` [B, T] and masks."""
    targets: torch.Tensor
    """[B, T - 1]: the token behind each position but the last, or `IGNORED`."""

    @property
    def tokens(self) -> int:
        """How many targets there are."""
        return int((self.targets != IGNORED).sum())


def as_batch(found: Any, device: torch.device) -> Batch:
    """What the data gave, on `device`.

    Raises:
        ConfigError: it is no batch.
    """
    given = dict(found) if isinstance(found, Mapping) else {"input_ids": found}
    ids = given.get("input_ids")
    if isinstance(ids, list | tuple) and len(ids) == 1:  # torch.utils.data.TensorDataset
        ids = ids[0]
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.is_floating_point() or ids.shape[1] < 2:
        shape = f" of shape {list(ids.shape)}" if isinstance(ids, torch.Tensor) else ""
        raise ConfigError(
            f"the data gave {type(found).__name__}{shape}, which is no batch of token ids",
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
    """How far a feed has come."""

    epoch: int = 0
    taken: int = 0
    """Batches of this epoch."""
    generator: torch.Tensor | None = None
    """State of torch's generator when the epoch began."""


class Feed:
    """Batches without end from an iterable.

    Args:
        data: the iterable.
        device: where the batches are put.
        position: where to go on.
    """

    def __init__(self, data: Iterable[Any], device: torch.device, position: Position | None = None) -> None:
        self.data, self.device = data, device
        self.position = Position()
        self._batches: Iterator[Any] | None = None
        self._given = False
        if position is not None and position.generator is not None:
            torch.set_rng_state(position.generator)
            self.position.epoch = position.epoch
            self._begin()
            for _ in range(position.taken):
                self._next_or_none()

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            ConfigError: the data can't be gone through again, or holds nothing.
        """
        if self._batches is None:
            self._begin()
        found = self._next_or_none()
        if found is None:
            self.position.epoch += 1
            self._begin()
            found = self._next_or_none()
        if found is None:
            seen = "ended, and can't be gone through again" if self._given else "is empty"
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
        self._given |= found is not None
        return found
