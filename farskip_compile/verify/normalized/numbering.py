# SPDX-License-Identifier: Apache-2.0
"""The numbers of calls: rules 1 to 5 of the account.

Contract: reads memory and writes to none. What a call computes depends on the mode that it runs in, which `switch`
changes: autocast, gradients.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from farskip_compile.verify.normalized.callees import Callee, callee_of
from farskip_compile.verify.normalized.forms import is_cast, is_copy, joined
from farskip_compile.verify.normalized.memory import Numbers, View, read
from farskip_compile.verify.normalized.sharing import KEEPS_ORDER, Shares
from farskip_compile.verify.normalized.twins import CheckedAutocast, TwinTypes
from farskip_compile.verify.normalized.values import OpaqueValue


class Numbering:
    """Numbers for the calls of one graph, one after another."""

    def __init__(self, numbers: Numbers, autocast: CheckedAutocast) -> None:
        self.numbers = numbers
        self.gradients = True
        self._autocasts: list[CheckedAutocast] = [autocast]
        self._mode = numbers.of("mode")
        self._twins = TwinTypes()
        self._callees: dict[object, tuple[object, Callee]] = {}
        self._shapes: dict[int, tuple[object, int]] = {}

    def of_call(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], views: list[View], shares: Any, fake: Any
    ) -> tuple[int, int]:
        """Return the number of what a call computes; and, if its result is a view, that of the step to it."""
        numbers = self.numbers
        if (found := joined(name, args, kwargs)) is not None:
            source, how = found
            step = numbers.of("step", how, source.shape)
            return numbers.of("part", step, read(source, numbers)), step
        if is_cast(name, args, kwargs) and views:
            return self._cast(views[0], args[1]), numbers.of("cast", str(args[1]))
        if name in KEEPS_ORDER and views and isinstance(fake, torch.Tensor) and fake.dtype == views[0].fake.dtype:
            return (number := read(views[0], numbers)), number
        step = 0
        if shares is not None and views:  # an operator that takes no tensor may return several
            source = views[shares.operand if isinstance(shares, Shares) else 0]
            step = numbers.of("step", name, self.key(args, source), self.key(kwargs, source), source.shape)
        return numbers.of("call", name, self._mode, self.key(args), self.key(kwargs)), step

    def stored(
        self, callee: Callee, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], number: int
    ) -> int | None:
        """Return the number of what an operator that writes in place leaves in its first argument (rules 1 and 3)."""
        target = args[0] if args else None
        if not isinstance(target, View):
            return None
        to = target.fake.dtype
        if is_copy(name, args):
            device = str(target.fake.device) if target.fake.device != args[1].fake.device else ""
            number = self._cast(args[1], to, device)
        elif callee.twin is not None:
            plain = self._twins.type_of(callee, args, kwargs, None)
            if plain is not None and plain != to:
                number = self.numbers.of("cast", number, str(to), "")
            autocast = self._autocasts[-1]
            if autocast is not None and self._twins.type_of(callee, args, kwargs, autocast) != plain:
                number = self.numbers.of("not cast by autocast", number)
        if target.differentiable and not self.gradients:
            number = self.numbers.of("with the gradients of", read(target, self.numbers), number)
        return number

    def _cast(self, view: View, dtype: torch.dtype, device: str = "") -> int:
        number = read(view, self.numbers)
        if view.fake.dtype == dtype and not device:
            return number
        return self.numbers.of("cast", number, str(dtype), device)

    def switch(self, name: str, args: tuple[Any, ...], number: int) -> None:
        """Go on in another mode: whatever runs from here on is another computation."""
        self._mode = self.numbers.of("mode", self._mode, number)
        if name == "_set_grad_enabled":
            self.gradients = bool(args[0])
        elif name == "_enter_autocast":
            device, dtype, enabled = (*args, *("cpu", None, True)[len(args) :])[:3]
            on = (device, dtype or torch.get_autocast_dtype(device)) if enabled else None
            self._autocasts.append(on)
        elif name == "_exit_autocast" and len(self._autocasts) > 1:
            self._autocasts.pop()

    def key(self, value: Any, source: View | None = None) -> Hashable:
        """Return what makes two arguments the same; `source` is left out."""
        if isinstance(value, View):
            return 0 if value is source else self.numbers.of("tensor", read(value, self.numbers), value.shape)
        if isinstance(value, OpaqueValue):
            return value.number
        if isinstance(value, dict):
            return ("names", *((name, self.key(one, source)) for name, one in value.items()))
        if isinstance(value, slice):
            value = ("slice", value.start, value.stop, value.step)
        if isinstance(value, tuple | list):
            return ("list", *(self.key(one, source) for one in value))
        return _constant(value)

    def shape(self, fake: torch.Tensor) -> int:
        """Return the number of the shape of a fake tensor."""
        known = self._shapes.get(id(fake))
        if known is None:
            # as text: a size may be an int in one graph, and a symbol that stands for that int in the other
            known = self._shapes[id(fake)] = fake, self.numbers.of("shape", str(tuple(fake.shape)))
        return known[1]

    def callee(self, record: Any) -> Callee:
        """Return what is known of what a node calls."""
        key = record.target if record.op == "call_method" else id(record.target)
        known = self._callees.get(key)
        if known is None:
            known = self._callees[key] = record.target, callee_of(record.target, record.op == "call_method")
        return known[1]


def _constant(value: Any) -> Hashable:
    if value is None or isinstance(value, bool | int | str):
        return type(value).__name__, value
    if isinstance(value, float | complex | torch.device | torch.SymInt | torch.SymFloat | torch.SymBool):
        return type(value).__name__, repr(value)
    return type(value).__name__, id(value)
