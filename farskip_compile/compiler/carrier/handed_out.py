# SPDX-License-Identifier: Apache-2.0
"""The parts of a residual stream between two layers, and the whole stream once somebody has read it there.

Contract: the whole stream is made once, and everybody who reads it gets the same tensor, so that a write is seen by
all later readers. The next layer takes the parts, which no reader can change; `refuse_if_changed` runs before it does,
and raises if the whole stream is no longer what it was made as. The memory itself is compared, bit for bit, since a
write through `.data`, NumPy, DLPack or a kernel's pointer leaves no other trace. Streams that nobody reads cost one
look into an empty dictionary.
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
    "what changes the residual stream, or looks at its gradient, between two rewired layers needs a compile of the "
    'whole model: torch.compile(model, backend="farskip", fullgraph=True); or layers on both sides that are not '
    "rewired: farskip_compile.regional(model, layers=(first, last))"
)


class Rest:
    """The parts of a carrier besides its base. No dataclass: no walk over structures is to look into it."""

    def __init__(self, key: str, base: torch.Tensor, others: tuple[Any, ...]) -> None:
        self.key = key
        """Key of the tail that makes the stream of the parts."""
        self.base = base
        """The base as it left the graph: what somebody puts in its place is compared with it."""
        self.others = others
        """Further parts: terms that are settled, in flight, or needed for these."""
        self.handed_out: HandedOut | None = None

    @torch.compiler.disable(reason="the residual stream between two layers of farskip_compile.regional is read")
    def whole(self) -> torch.Tensor:
        """Return the whole stream, each time the same tensor, with the gradients that a plain model's would have.

        Dynamo does not trace this, for whatever backend: the identity of a part is that of the tensor which runs.
        """
        if self.handed_out is None:
            self.handed_out = HandedOut(self.fresh())
            for part in (self.base, *self.others):
                if isinstance(part, torch.Tensor):
                    _handed_out[id(part)] = weakref.ref(self)
                    weakref.finalize(self, _handed_out.pop, id(part), None)
        return self.handed_out.whole

    def fresh(self) -> torch.Tensor:
        """Return the whole stream as a new tensor.

        It may be made in a hook inside of an activation checkpoint, in code without gradients, or under a mode that
        counts operators, and is kept for readers outside of these: none of them takes part in it.
        """
        with (
            torch.inference_mode(self.base.is_inference()),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(_same, _same),
            without_modes(),
        ):
            return tail_of(self.key)(self.base, *self.others)

    def is_whole(self, value: Any) -> bool:
        """Return whether `value` is the tensor that `whole` has returned."""
        return self.handed_out is not None and value is self.handed_out.whole

    def is_among(self, inputs: Sequence[Any]) -> bool:
        """Return whether all parts are among `inputs`; FSDP2 puts a view in the place of the base."""
        tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
        known = set(map(id, tensors))
        others = all(id(part) in known for part in self.others if isinstance(part, torch.Tensor))
        return others and (id(self.base) in known or any(is_alias(value, self.base) for value in tensors))


class HandedOut:
    """The whole stream as somebody has got it, and how it was then."""

    def __init__(self, whole: torch.Tensor) -> None:
        self.whole = whole
        self.before = whole.detach().clone()
        self.requires_grad = whole.requires_grad

    def changes(self) -> str:
        """Return what was done to the stream since, or an empty text."""
        if awaits_gradient(self.whole) or self.whole.requires_grad != self.requires_grad:
            return "was asked for its gradient"
        return "" if _have_same_bits(self.whole.detach(), self.before) else "was written to"


_handed_out: dict[int, weakref.ref[Rest]] = {}
"""Identity of a part -> the stream that it belongs to; of streams that somebody has read."""


def refuse_if_changed(inputs: Sequence[Any], where: Where) -> None:
    """Raise if a stream among the inputs of a compiled layer was changed after the layer before returned it.

    Args:
        inputs: the inputs of the layer's graph, parts of streams among them.
        where: the place of the layer.

    Raises:
        PartialModelError: the stream was written to, or a hook waits for its gradient.
    """
    if not _handed_out or in_backward():
        return
    found = {reference() for value in inputs if (reference := _handed_out.get(id(value))) is not None}
    for rest in found:
        handed_out = rest.handed_out if rest is not None and rest.is_among(inputs) else None
        if handed_out is not None and (change := handed_out.changes()):
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


def _same(value: Any) -> Any:
    return value
