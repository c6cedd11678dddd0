# SPDX-License-Identifier: Apache-2.0
"""A model whose forward runs rewired or not at all.

Contract: `guard` gives the model, and each model of transformers in it, a forward that does what it did if Dynamo
traces it for our backend, and raises an `OriginalWiringError` otherwise: when it is called as it is, when a graph break
leaves it to Python, when another backend or `torch.export` traces it. While it is traced it is a constant, so that the
graph has no trace of it. Classes, parameters and names stay as they are, and so does a forward that others gave the
model itself, as accelerate does for mixed precision: it is called in place of the class's. `unguard` is the way back.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn

from farskip_compile.errors import OriginalWiringError
from farskip_compile.guard.compilers import traced_by_us

MARK = "farskip_guard"


Refusal = tuple[str, str]
"""Reason and way out of the error."""


def guard(model: nn.Module, manifest: str | None, *, refusal: Refusal | None = None) -> None:
    """Refuse to run `model` in its original wiring.

    Args:
        model: the module; changed in place.
        manifest: the file of its manifest, if that is at hand.
        refusal: what the error says; None: that the weights are for the form that the manifest describes.
    """
    for module in _with_parts(model):
        given = vars(module).get("forward")
        if is_ours := hasattr(given, MARK):
            given = getattr(given, MARK)
        if not is_ours or refusal is None:  # else it is guarded by its checkpoint, which says more
            vars(module)["forward"] = MethodType(_forward(module, given, refusal or _of_weights(manifest)), module)


def unguard(model: nn.Module) -> None:
    """Let a model from a guarded checkpoint run in its original wiring too, to look into what that computes.

    Args:
        model: the module; changed in place. One that is not guarded stays as it is.
    """
    for module in model.modules():
        if hasattr(found := vars(module).get("forward"), MARK):
            del vars(module)["forward"]
            if (given := getattr(found, MARK)) is not None:
                vars(module)["forward"] = given


def is_guarded(model: nn.Module) -> bool:
    """Whether the model, or a model of transformers in it that holds its stack, runs rewired or not at all.

    What others put around the forward of the model later, as TRL does for its loss, calls the one inside.
    """
    return any(hasattr(vars(module).get("forward"), MARK) for module in _with_parts(model))


def _with_parts(model: nn.Module) -> Iterator[nn.Module]:
    """The model, and the models of transformers in it."""
    of_transformers = getattr(sys.modules.get("transformers"), "PreTrainedModel", ())
    return (module for module in model.modules() if module is model or isinstance(module, of_transformers))


def _forward(module: nn.Module, given: Callable[..., Any] | None, refusal: Refusal) -> Any:
    """Guards the forward that the module was `given`, or else that of its class."""
    plain = _unbound(given, module) if given is not None else type(module).forward

    @functools.wraps(plain)  # `generate` passes what it finds in the signature
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        _refuse_original_wiring(*refusal)
        return plain(self, *args, **kwargs)

    setattr(forward, MARK, given)
    return forward


def _unbound(given: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
    """Called with the module first, so that a copy of the module does not run this one."""
    if isinstance(given, MethodType) and given.__self__ is module:
        return given.__func__

    @functools.wraps(given)
    def plain(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return given(*args, **kwargs)

    return plain


def _of_weights(manifest: str | None) -> Refusal:
    described = f"{manifest} describes" if manifest is not None else "the manifest in its configuration describes"
    option = repr(manifest) if manifest is not None else "model.config.to_dict()"
    return (
        f"the weights are for a FarSkip form of this model, which {described}, and it is about to run in its "
        "original wiring, where they compute something else",
        f'model.compile(backend="farskip", fullgraph=True, options={{"manifest": {option}}}) before it is '
        "called; or, to run it like this all the same, farskip_compile.unguard(model)",
    )


@torch.compiler.assume_constant_result
def _refuse_original_wiring(reason: str, way_out: str) -> None:
    """Runs while Dynamo traces, or where nothing traces."""
    if not traced_by_us():
        raise OriginalWiringError(reason, way_out=way_out)
