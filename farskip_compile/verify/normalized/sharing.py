# SPDX-License-Identifier: Apache-2.0
"""The operands that results are views of.

Contract: of the first graph Dynamo's fake tensors are own: tensors share memory if the storages of their fake
tensors are one. The answers are kept. A node of the second graph that stood in the first gets the answer that it had
there, whatever its operands are called now; the fake tensors of others, which the code under test made, are claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from farskip_compile._compat.tensors import memory_of
from farskip_compile.verify.normalized.memory import View, same_elements

KEEPS_ORDER = frozenset(
    [
        *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze"),
        *("view_as", "reshape_as", "contiguous", "clone", "alias"),
    ]
)
"""Operators that give back the elements that they are given, in the same order."""
DETACHING = frozenset(["detach", "_get_data_attr"])
"""Operators whose result no gradient goes through."""
ALWAYS = frozenset(["view_as", "unflatten", "movedim"])
"""Operators whose result is a view of their first operand, whatever a new node says."""


@dataclass(frozen=True, slots=True)
class Shares:
    """The result is a view of an operand."""

    operand: int
    """The place of the operand among the tensors that the call is given."""
    is_all: bool
    """True if the result holds all elements of the operand in their order, and gradients go through it."""


class Sharing:
    """The answers for the calls of one graph."""

    def __init__(self) -> None:
        self._by_node: dict[object, Any] = {}
        self._by_value: dict[tuple[int, object], Any] = {}
        self._memories: dict[int, tuple[object, object]] = {}
        self.complete = False
        """The first graph was gone through."""

    def of(
        self, node: Any, name: str, fake: Any, views: Sequence[View], gradients: bool, own: bool
    ) -> tuple[bool, Any]:
        """Return whether a call is known from the first graph; and the `Shares` of its result, None, or several.

        Args:
            node: the call.
            name: of its operator.
            fake: its fake value.
            views: the tensors that it is given.
            gradients: whether gradients are recorded there.
            own: whether the fake value is Dynamo's.
        """
        key = (id(fake), node.target)
        if self.complete:
            if node in self._by_node:
                return True, self._by_node[node]
            if key in self._by_value:
                return True, self._by_value[key]
            if name in ALWAYS:
                return False, Shares(0, is_all=name in KEEPS_ORDER)
        detached = name in DETACHING or not gradients
        found = self._shares(name, fake, views, detached)
        if not self.complete and own:
            self._by_node[node] = found
            self._by_value.setdefault(key, found)
        return not self.complete and own, found

    def _shares(self, name: str, fake: Any, views: Sequence[View], detached: bool) -> Any:
        if isinstance(fake, tuple | list):
            return tuple(self._shares(name, one, views, detached) for one in fake)
        if not isinstance(fake, torch.Tensor):
            return None
        memory = self.memory_of(fake)
        for place, view in enumerate(views):
            if self.memory_of(view.fake) == memory:
                keeps = name in KEEPS_ORDER and view.fake.dtype == fake.dtype
                cut_off = detached and (view.fake.requires_grad or fake.requires_grad)
                return Shares(place, not cut_off and (keeps or same_elements(view.fake, fake)))
        return None

    def memory_of(self, fake: torch.Tensor) -> object:
        """Return the identity of the memory of a fake tensor; of a wrapper, of the first tensor that it wraps."""
        known = self._memories.get(id(fake))
        if known is None:
            known = self._memories[id(fake)] = fake, memory_of(fake)
        return known[1]
