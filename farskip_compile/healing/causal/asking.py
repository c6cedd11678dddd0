# SPDX-License-Identifier: Apache-2.0
"""How a model is asked about a batch so that its logits are never whole.

In:    a model and its output head (`head`), if there is one that can be run by itself; layers whose stream is wanted.
Out:   `Asking`: a function of a batch that returns an `ModelOutput`: hidden states, from which the losses compute
       logits chunk by chunk (`losses`), and what each layer left in the residual stream.
Never: a forward that stays replaced after a call.

Algorithm:
1. During a call the head has a forward that keeps what it is given, [B, T, H], and computes the logits of the last
   position only, so that what the model returns has the form that it always has. It works in a graph, too: Dynamo
   makes the kept tensors further outputs of it.
2. Likewise, each layer has a forward that keeps what it returns.
3. Without a head the logits are whole, and may not be larger than the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from farskip_compile.errors import ConfigError
from farskip_compile.healing.causal.batches import Batch, caller
from farskip_compile.healing.causal.head import Head, find_head, whole
from farskip_compile.tools.prepare.preserve_state import everything_kept

MEMORY = 2**28
"""Bytes that the logits of a chunk may take."""


def at_a_time(vocabulary: int, kind: torch.dtype, memory: int) -> int:
    """Number of positions whose logits, in float32 at least, take `memory` bytes at most; one at least."""
    return max(1, memory // (vocabulary * max(kind.itemsize, 4)))


@dataclass(frozen=True, eq=False)
class Hidden:
    """Logits that are not computed yet."""

    states: torch.Tensor
    """[B, T, H]: what the head is given."""
    head: Head
    values: Mapping[str, torch.Tensor]
    """Parameters and buffers of the head."""
    precision: torch.dtype | None = None
    """Of autocast, within which the model ran; None: without it."""

    def logits(self, states: torch.Tensor, values: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Logits [..., V] of some of the states, or of others; `values` in place of its own."""
        kind = states.device.type
        with torch.autocast(kind, self.precision or torch.get_autocast_dtype(kind), self.precision is not None):
            return self.head.logits(states, self.values if values is None else values)

    @property
    def size(self) -> int:
        """Bytes of the states."""
        return self.states.nbytes

    def moved(self, device: torch.device) -> Hidden:
        """The same, with the states on another device."""
        return Hidden(self.states.to(device), self.head, self.values, self.precision)


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """What a model said about a batch."""

    logits: torch.Tensor
    """[B, T, V]; next to `hidden`, [B, 1, V]: those of the last position."""
    hidden: Hidden | None = None
    streams: tuple[torch.Tensor, ...] = ()
    """[B, T, H] for each layer: what it returned."""

    @property
    def said(self) -> torch.Tensor | Hidden:
        """What the losses take."""
        return self.logits if self.hidden is None else self.hidden

    def tie(self) -> torch.Tensor:
        """Zero, with gradients of zero for all that the model returned: wrappers wait for these (DDP, FSDP2)."""
        return (self.logits * 0).sum()


class _Kept:
    """What the replaced forwards keep; Dynamo sees a plain object whose attributes change."""

    def __init__(self, layers: int) -> None:
        self.states: torch.Tensor | None = None
        self.streams: list[Any] = [None] * layers


class Asking:
    """See the module.

    Args:
        model: not compiled; what is asked may be this model in another form.
        batch: on whose first tokens the model is run once, to find its head.
        memory: bytes that logits may take at a time; None: no limit where there is no head.
        layers: whose output is wanted.
    """

    def __init__(
        self, model: nn.Module, batch: Batch, memory: int | None = None, layers: Sequence[nn.Module] = ()
    ) -> None:
        self.model, self.memory = model, memory
        with everything_kept([model], batch.inputs.values()):
            found = find_head(model, batch)
        self.head: Head | None = found if isinstance(found, Head) else None
        self.reason = found if isinstance(found, str) else ""
        self._kept, self._layers = _Kept(len(layers)), tuple(layers)
        self._forwards: dict[tuple[nn.Module, Any], Callable[..., Any]] = {}
        """What replaces a forward, so that Dynamo sees the same function in each call."""

    def of(
        self, function: Callable[..., Any], known: Mapping[str, torch.Tensor] | None = None
    ) -> Callable[[Batch], ModelOutput]:
        """`function`, which is called as the model is, as a function of a batch.

        Args:
            function: the model, or it compiled and wrapped.
            known: parameters and buffers that it runs with, by name; None: those that the model has.

        Raises:
            ConfigError: at a call, if the logits have to be whole and are too large.
        """
        # what is known does not change: of a head that is spread over ranks, its whole parameters are gathered once
        values = self.head.values(known) if known and self.head is not None else None
        return partial(self._ask, caller(function, self.model), values)

    def _ask(
        self, logits_of: Callable[[Batch], torch.Tensor], values: Mapping[str, torch.Tensor] | None, batch: Batch
    ) -> ModelOutput:
        with self._replaced():
            logits = logits_of(batch)
            states, streams = self._kept.states, tuple(_settled(one) for one in self._kept.streams if one is not None)
            self._kept.states, self._kept.streams = None, [None] * len(self._kept.streams)
        if len(streams) != len(self._kept.streams):
            raise ConfigError(
                f"{len(streams)} of {len(self._kept.streams)} layers left their stream in a run of the model",
                way_out="stream_weight=0",
            )
        if self.head is None:
            self._check_size(logits)
            return ModelOutput(logits, None, streams)
        assert states is not None
        kind = logits.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        values = values if values is not None else self.head.values()
        return ModelOutput(logits, Hidden(whole(states), self.head, values, precision), streams)

    def _check_size(self, logits: torch.Tensor) -> None:
        size = logits.numel() * max(logits.element_size(), 4)
        if self.memory is not None and size > self.memory:
            raise ConfigError(
                f"the logits of a batch take {size} bytes, which is more than logits_memory={self.memory}, and they "
                f"can't be computed in parts: {self.reason}",
                way_out="smaller batches, shorter sequences or more logits_memory; or a model whose logits are the "
                "output of one module",
            )

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        with ExitStack() as stack:
            for at, module in enumerate(self._layers):
                stack.callback(partial(_put_back, module, dict(vars(module))))
                vars(module)["forward"] = self._keeping(module, partial(_keeping_stream, self._kept, at))
            if self.head is not None:
                module = self.head.module
                stack.callback(partial(_put_back, module, dict(vars(module))))
                vars(module)["forward"] = self._keeping(module, partial(_keeping_states, self._kept))
            yield

    def _keeping(self, module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:
        """What replaces the forward that `module` has now: its own, or that of a layer that is compiled by itself."""
        key = module, getattr(module.forward, "__func__", module.forward)
        if key not in self._forwards:
            self._forwards[key] = make(module.forward)
        return self._forwards[key]


def _settled(stream: Any) -> torch.Tensor:
    """The stream that a layer returned; one that is compiled by itself returns it in parts (`carrier`)."""
    found: torch.Tensor = stream if isinstance(stream, torch.Tensor) else stream.whole()
    return found


def _put_back(module: nn.Module, state: Mapping[str, Any]) -> None:
    if "forward" in state:
        vars(module)["forward"] = state["forward"]
    else:
        vars(module).pop("forward", None)


def _keeping_states(kept: _Kept, forward: Callable[..., Any]) -> Callable[..., Any]:
    def keeping_states(states: torch.Tensor) -> Any:
        kept.states = states
        return forward(states[:, -1:])

    return keeping_states


def _keeping_stream(kept: _Kept, at: int, forward: Callable[..., Any]) -> Callable[..., Any]:
    def keeping_stream(*args: Any, **kwargs: Any) -> Any:
        found = forward(*args, **kwargs)
        kept.streams[at] = first_of(found)
        return found

    return keeping_stream


def first_of(output: Any) -> Any:
    """The stream in what a layer returned."""
    return output[0] if isinstance(output, tuple) and output else output
