# SPDX-License-Identifier: Apache-2.0
"""A model whose forward runs rewired or not at all.

Contract: `guard` gives the model, and each model of transformers in it, a forward that does what it did if Dynamo
traces it for our backend, and raises an `OriginalWiringError` otherwise: when it is called as it is, when a graph break
leaves it to Python, when another backend or `torch.export` traces it. While it is traced it is a constant, so that the
graph has no trace of it. Classes, parameters and names stay as they are. `unguard` is the way back.
"""

from __future__ import annotations

import functools
import sys
from types import MethodType
from typing import Any

import torch
from torch import nn

from farskip_compile.errors import OriginalWiringError
from farskip_compile.guard.compilers import traced_by_us

MARK = "farskip_guard"


def guard(model: nn.Module, manifest: str | None, *, trained: bool = False) -> None:
    """Refuse to run `model` in its original wiring.

    Args:
        model: changed in place.
        manifest: the file of its manifest, if that is at hand.
        trained: it is about to be trained rewired, and has no manifest yet.
    """
    transformers = sys.modules.get("transformers")  # where it is not imported, no model is one of its
    theirs = transformers.PreTrainedModel if transformers is not None else ()
    why = _of_training() if trained else _of_a_checkpoint(manifest)
    for module in model.modules():
        if module is model or isinstance(module, theirs):
            vars(module)["forward"] = MethodType(_forward(type(module), *why), module)


def unguard(model: nn.Module) -> None:
    """Let a model from a guarded checkpoint run in its original wiring too, to look into what that computes.

    Args:
        model: the module; changed in place. One that is not guarded stays as it is.
    """
    for module in model.modules():
        if hasattr(vars(module).get("forward"), MARK):
            del vars(module)["forward"]


def _of_a_checkpoint(manifest: str | None) -> tuple[str, str]:
    """Why it is refused, and the way out."""
    described = f"{manifest} describes" if manifest is not None else "the manifest in its configuration describes"
    option = repr(manifest) if manifest is not None else "model.config.to_dict()"
    return (
        f"the weights are for a FarSkip form of this model, which {described}, and it is about to run in its original "
        "wiring, where they compute something else",
        f'model.compile(backend="farskip", fullgraph=True, options={{"manifest": {option}}}) before it is called; or, '
        "to run it like this all the same, farskip_compile.unguard(model)",
    )


def _of_training() -> tuple[str, str]:
    return (
        "the model is trained in a FarSkip form, and is about to run in its original wiring, where its weights compute "
        "something else",
        "call the model itself, model(...), which is compiled in place, and not its forward; or, to run it like this "
        "all the same, farskip_compile.unguard(model)",
    )


def _forward(cls: type[nn.Module], reason: str, way_out: str) -> Any:
    plain = cls.forward

    @functools.wraps(plain)  # `generate` passes what it finds in the signature
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        _refuse_original_wiring(reason, way_out)
        return plain(self, *args, **kwargs)

    setattr(forward, MARK, True)
    return forward


@torch.compiler.assume_constant_result
def _refuse_original_wiring(reason: str, way_out: str) -> None:
    """Runs while Dynamo traces, or where nothing traces."""
    if not traced_by_us():
        raise OriginalWiringError(reason, way_out=way_out)
