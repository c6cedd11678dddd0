# SPDX-License-Identifier: Apache-2.0
"""The forward of a layer that is compiled by itself: takes the stream in parts, and marks where it leaves.

Contract: `stand_in` gives a function that does what the layer's own forward does. While this package's backend traces
it, a carrier among its arguments becomes the mark of an arrival, and the tensors that it returns are marked. Anywhere
else, where nothing would be rewired, it raises an `OriginalWiringError`. Layers with the same forward share it, and so
what is compiled of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

from farskip_compile.compiler.carrier.stream import Carrier
from farskip_compile.compiler.guard.compilers import traced_by_us
from farskip_compile.compiler.guard.forward import REFUSES
from farskip_compile.errors import OriginalWiringError
from farskip_compile.passes.boundary.markers import arrive, depart

Forward = Callable[..., Any]

torch.compiler.allow_in_graph(arrive)
torch.compiler.allow_in_graph(depart)


def stand_in(plain: Forward, *, here: bool | str, later: bool | str, prepared: str = "", plan: str = "") -> Forward:
    """A forward in place of `plain`; `here` and `later`: what is asked of the layer, and of what comes after it.

    `prepared`: the backend for whoever compiles it without options of its own; see
    `farskip_compile.compiler.backend.prepare`. `plan`: see `depart`.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_original_wiring()
        taken = [_arrived(value) for value in args]
        named = {name: _arrived(value) for name, value in kwargs.items()}
        return _departing(plain(self, *taken, **named), here, later, prepared, plan)

    code = forward.__code__.replace()  # a copy: Dynamo counts recompilations by code
    own = FunctionType(code, forward.__globals__, forward.__name__, None, forward.__closure__)
    setattr(own, REFUSES, True)
    return functools.wraps(plain)(own)


def _arrived(value: Any) -> Any:
    return arrive(value.rest.key, value.base, *value.rest.others) if isinstance(value, Carrier) else value


def _departing(returned: Any, *mark: Any) -> Any:
    if isinstance(returned, torch.Tensor):
        return depart(returned, *mark)
    if type(returned) is tuple:
        return tuple(depart(one, *mark) if isinstance(one, torch.Tensor) else one for one in returned)
    return returned


@torch.compiler.assume_constant_result
def _refuse_original_wiring() -> None:
    """Runs while Dynamo traces, or where nothing traces."""
    if not traced_by_us():
        raise OriginalWiringError(
            "a layer that farskip_compile.regional has prepared is about to run in its original wiring",
            way_out='layer.compile(backend="farskip") before it is called, or farskip_compile.regional(model, '
            "compile=True); Regional.undo() puts the model back",
        )
