# SPDX-License-Identifier: Apache-2.0
"""The parts of a residual stream between two layers, and the whole tensor for whoever reads the stream there.

Contract: the whole tensor is made once, and every reader gets the same one, so that later readers see a write. The next
layer takes the parts, which no reader can change; `refuse_if_changed` runs before that, and raises if the whole tensor
was changed. Its memory is compared bit for bit, since a write through `.data`, NumPy, DLPack or a kernel's pointer
leaves no other trace. Streams that nobody reads cost one look into an empty dictionary.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from farskip_compile._compat.dispatch import without_modes
from farskip_compile._compat.tensors import awaits_gradient, in_backward, local_part
from farskip_compile._compat.trees import is_alias
from farskip_compile.errors import PartialModelError, Where, refuse
from farskip_compile.passes.boundary.tail import tail_of

WAY_OUT = (
    "code that changes the residual stream, or looks at its gradient, between two rewired layers needs a compile of "
    'the whole model: torch.compile(model, backend="farskip", fullgraph=True); or layers on both sides that are not '
    "rewired: farskip_compile.regional(model, layers=(first, last))"
)


class StreamParts:
    """The parts of a residual stream. No dataclass, so that no walk over structures finds the tensors in it."""

    def __init__(self, key: str, base: torch.Tensor, others: tuple[Any, ...]) -> None:
        self.key = key
        """The key of the tail that adds up the parts."""
        self.base = base
        """The first part as it left the graph; a carrier compares its own base with this one."""
        self.others = others
        """Further parts: terms that are settled or in flight, and values that these need."""
        self.materialised: MaterialisedStream | None = None

    @torch.compiler.disable(reason="the residual stream between two layers of farskip_compile.regional is read")
    def whole(self) -> torch.Tensor:
        """Return the whole stream, each time the same tensor, with the gradients that a plain model's would have.

        Dynamo does not trace this, for whatever backend: parts are known by the identity of the tensors that run.
        """
        if self.materialised is None:
            self.materialised = MaterialisedStream(self.sum())
            for part in (self.base, *self.others):
                if isinstance(part, torch.Tensor):
                    _streams_by_part[id(part)] = weakref.ref(self)
                    weakref.finalize(self, _streams_by_part.pop, id(part), None)
        return self.materialised.whole

    def sum(self) -> torch.Tensor:
        """Return the whole stream as a new tensor.

        A hook inside of an activation checkpoint, code without gradients, or a mode that counts operators may ask for
        the tensor, and readers outside of these get the same one: so none of these modes takes part in the sum.
        """
        with (
            torch.inference_mode(self.base.is_inference()),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(_unchanged, _unchanged),
            without_modes(),
        ):
            return tail_of(self.key)(self.base, *self.others)

    def is_whole(self, value: Any) -> bool:
        """Return whether `value` is the tensor that `whole` has returned."""
        return self.materialised is not None and value is self.materialised.whole

    def is_among(self, inputs: Sequence[Any]) -> bool:
        """Return whether all parts are among `inputs`; FSDP2 puts a view in the place of the base."""
        tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
        identities = set(map(id, tensors))
        if any(isinstance(part, torch.Tensor) and id(part) not in identities for part in self.others):
            return False
        return id(self.base) in identities or any(is_alias(value, self.base) for value in tensors)


class MaterialisedStream:
    """The whole stream as its readers have got it, and a copy from before they did."""

    def __init__(self, whole: torch.Tensor) -> None:
        self.whole = whole
        self.before = whole.detach().clone()
        self.requires_grad = whole.requires_grad

    def change(self) -> str:
        """Return words for a change that readers have made, or an empty text."""
        if awaits_gradient(self.whole) or self.whole.requires_grad != self.requires_grad:
            return "was asked for its gradient"
        return "" if _have_same_bits(self.whole.detach(), self.before) else "was written to"


_streams_by_part: dict[int, weakref.ref[StreamParts]] = {}
"""The streams that somebody has read, by the identities of their parts."""


def refuse_if_changed(inputs: Sequence[Any], where: Where) -> None:
    """Raise if a stream among the inputs of a compiled layer was changed after the layer before returned it.

    Args:
        inputs: the inputs of the layer's graph, parts of streams among them.
        where: the place of the layer.

    Raises:
        PartialModelError: the stream was written to, or a hook waits for its gradient.
    """
    if not _streams_by_part or in_backward():
        return
    streams = {_streams_by_part[id(value)]() for value in inputs if id(value) in _streams_by_part}
    for parts in streams:
        if parts is None or parts.materialised is None or not parts.is_among(inputs):
            continue
        change = parts.materialised.change()
        if change:
            raise PartialModelError(
                f"the residual stream {change} after one layer that is compiled by itself returned it, and before the "
                "next one, which takes the stream in parts",
                way_out=WAY_OUT,
                where=where,
            )


def refuse_change(name: str) -> None:
    """Raise the error for `name`, a method or function that changes the stream or looks at its gradient."""
    refuse(
        PartialModelError,
        f"{name!r} would write into the residual stream, or look at its gradient, between two layers that are compiled "
        "one by one",
        WAY_OUT,
    )


def _have_same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether both hold the same bits: a NaN equals itself, and 0.0 is not -0.0."""
    one, other = local_part(one), local_part(other)
    if one.shape != other.shape or one.dtype != other.dtype or one.untyped_storage().nbytes() < one.nbytes:
        return False
    with torch.no_grad():
        return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def _unchanged(value: Any) -> Any:
    return value
