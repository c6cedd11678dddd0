# SPDX-License-Identifier: Apache-2.0
"""The forward of a layer that is compiled by itself, which marks where the residual stream arrives and leaves.

Contract: `layer_forward` gives a function that does what the layer's own forward does. While this package's backend
traces it, a carrier among its arguments becomes the mark of an arrival, and the tensors that it returns are marked.
Anywhere else, where nothing would be rewired, it raises an `OriginalWiringError`. Layers with the same forward share
the function and its compiled code.
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


def layer_forward(
    plain: Forward, *, here: bool | str, later: bool | str, prepared: str = "", plan: str = ""
) -> Forward:
    """Return a forward in place of `plain`.

    Args:
        plain: the layer's own forward, as a function of the layer.
        here: the connectivity that the layer is asked for.
        later: the connectivity that later layers are asked for.
        prepared: the backend for callers of `compile` without options; see `farskip_compile.compiler.backend.prepare`.
        plan: see `depart`.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_original_wiring()
        arrived_args = [_mark_arrival(value) for value in args]
        arrived_kwargs = {name: _mark_arrival(value) for name, value in kwargs.items()}
        return _mark_departure(plain(self, *arrived_args, **arrived_kwargs), here, later, prepared, plan)

    code = forward.__code__.replace()  # a copy: Dynamo counts recompilations by code
    own = FunctionType(code, forward.__globals__, forward.__name__, None, forward.__closure__)
    setattr(own, REFUSES, True)
    return functools.wraps(plain)(own)


def _mark_arrival(value: Any) -> Any:
    return arrive(value.parts.key, value.base, *value.parts.others) if isinstance(value, Carrier) else value


def _mark_departure(returned: Any, *mark: Any) -> Any:
    if isinstance(returned, torch.Tensor):
        return depart(returned, *mark)
    if type(returned) is tuple:
        return tuple(depart(one, *mark) if isinstance(one, torch.Tensor) else one for one in returned)
    return returned


@torch.compiler.assume_constant_result
def _refuse_original_wiring() -> None:
    """Raise unless Dynamo traces the layer for this backend."""
    if not traced_by_us():
        raise OriginalWiringError(
            "a layer that farskip_compile.regional has prepared is about to run in its original wiring",
            way_out='layer.compile(backend="farskip") before it is called, or farskip_compile.regional(model, '
            "compile=True); Regional.undo() puts the model back",
        )
