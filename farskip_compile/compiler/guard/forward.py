# SPDX-License-Identifier: Apache-2.0
"""Guards of forwards, which notice when a forward is about to run in its original wiring.

Contract: `attach` gives a module a forward that asks the module's `Guard` first. Where Dynamo traces the forward for
our backend, nothing happens, and the graph has no trace of the question. Everywhere else the guard decides: when the
forward is called as it is, when a graph break leaves it to Python, when another backend or `torch.export` traces it,
when a stance keeps Dynamo from compiling. `guard` attaches a guard that always raises an `OriginalWiringError`
(`compiled` has one that asks first whether the weights need it) to a model, and to each model of transformers in it.
Copies and pickles of a module are guarded as the module is. Classes, parameters and names stay as they are. A forward
that others gave the module, as accelerate does for mixed precision, stays too: it is called in place of the class's.
`unguard` is the way back.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from farskip_compile.compiler.guard.compilers import traced_by_us
from farskip_compile.errors import OriginalWiringError

MARK = "farskip_guard"
"""Attribute of a guarded forward: the forward that the module had of its own before, or None."""
GUARD = "farskip_guarded_by"
"""Attribute of a guarded module: its guard."""
REFUSES = "farskip_refuses"
"""Attribute of a forward that refuses its original wiring by itself, as a layer of `regional` does."""

ReasonAndHint = tuple[str, str]
"""The reason and the hint of an error."""


class Guard:
    """The guard of a module, which raises if the forward is about to run in its original wiring."""

    def __init__(self, module: nn.Module, refusal: ReasonAndHint) -> None:
        self.module = module
        self.refusal = refusal

    @torch.compiler.assume_constant_result
    def check(self) -> None:
        """Let the guard decide, while Dynamo traces or where nothing traces."""
        if traced_by_us():
            self.note_rewired_trace()
        else:
            self.refuse_original()

    def note_rewired_trace(self) -> None:
        """Do nothing: the forward is traced for our backend."""

    def refuse_original(self) -> None:
        """Refuse to run the forward in its original wiring.

        Raises:
            OriginalWiringError: always.
        """
        reason, way_out = self.refusal
        raise OriginalWiringError(reason, way_out=way_out)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        attach(self.module, self)  # a copy or a pickle has no functions


def guard(model: nn.Module, manifest: str | None, *, refusal: ReasonAndHint | None = None) -> None:
    """Refuse to run `model` in its original wiring.

    Args:
        model: the module; changed in place.
        manifest: the file of its manifest, if there is one.
        refusal: the text of the error; None: that the weights are for the form that the manifest describes.
    """
    for module in with_models_inside(model):
        if refusal is None or not always_refuses(module):  # else it is guarded by its checkpoint, which says more
            attach(module, Guard(module, refusal or _refusal_for_weights(manifest)))


def unguard(model: nn.Module) -> None:
    """Let a guarded model run in its original wiring too, to look into what the model computes there.

    Args:
        model: the module, changed in place: from a guarded checkpoint, or compiled in place at some time, or a copy
            of one. A module that is not guarded stays as it is.
    """
    for module in model.modules():
        vars(module).pop(GUARD, None)
        if hasattr(found := vars(module).get("forward"), MARK):
            del vars(module)["forward"]
            if (given := getattr(found, MARK)) is not None:
                vars(module)["forward"] = given


def is_guarded(model: nn.Module) -> bool:
    """Return whether the model, or a model of transformers in it, runs rewired or not at all.

    Forwards that others put around the model's later, as TRL does for its loss, call the guarded one.
    """
    for module in with_models_inside(model):
        if always_refuses(module) and hasattr(vars(module).get("forward"), MARK):
            return True
    return False


def always_refuses(module: nn.Module) -> bool:
    """Return whether a guard of the module raises in all cases."""
    return type(vars(module).get(GUARD)) is Guard


def with_models_inside(model: nn.Module) -> Iterator[nn.Module]:
    """Return the model, and the models of transformers in it."""
    of_transformers = getattr(sys.modules.get("transformers"), "PreTrainedModel", ())
    return (module for module in model.modules() if module is model or isinstance(module, of_transformers))


def attach(module: nn.Module, guard: Guard) -> None:
    """Let `guard` decide when the forward of `module` is about to run in its original wiring."""
    given = vars(module).pop("forward", None)
    if hasattr(given, MARK):
        given = getattr(given, MARK)
    vars(module)[GUARD] = guard  # before the forward: a pickle looks that up in what it has built already
    own = _guarded(type(module).forward) if given is None else _guarded_given(given, module)
    vars(module)["forward"] = MethodType(own, module)


def source_behind(module: nn.Module | None, source: str) -> str:
    """Return `file:line` of the forward that the guard of `module` calls if `source` is here, and else `source`."""
    if module is None or GUARD not in vars(module) or source.rpartition(":")[0] != __file__:
        return source
    plain: Any = getattr(vars(module)["forward"], MARK, None) or type(module).forward
    code = inspect.unwrap(plain).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def _guarded_given(given: Callable[..., Any], module: nn.Module) -> Any:
    """Return `given`, the forward that one module was given, with a guard."""
    own = _guarded.__wrapped__(_unbound(given, module))
    setattr(own, MARK, given)
    return own


@functools.lru_cache(maxsize=256)
def _guarded(plain: Callable[..., Any]) -> Any:
    """Return the forward of a class with a guard, for all of its modules: they share what Dynamo compiles."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        getattr(self, GUARD).check()
        return plain(self, *args, **kwargs)

    code = forward.__code__.replace()  # a copy: Dynamo counts recompilations by code
    own: Any = FunctionType(code, forward.__globals__, "forward", None, forward.__closure__)
    functools.update_wrapper(own, plain)
    del own.__wrapped__  # accelerate takes a forward apart by it, down to the class's
    own.__name__, own.__signature__ = "forward", inspect.signature(plain)  # `generate` passes what it finds there
    setattr(own, MARK, None)
    return own


def _unbound(given: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
    """Return `given` as a function of the module, so that a copy of the module does not run the original."""
    if isinstance(given, MethodType) and given.__self__ is module:
        return given.__func__

    @functools.wraps(given)
    def plain(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return given(*args, **kwargs)

    del plain.__wrapped__
    return plain


def _refusal_for_weights(manifest: str | None) -> ReasonAndHint:
    described = f"{manifest} describes" if manifest is not None else "the manifest in its configuration describes"
    option = repr(manifest) if manifest is not None else "model.config.to_dict()"
    return (
        f"the weights are for a FarSkip form of this model, which {described}, and it is about to run in its "
        "original wiring, where they compute something else",
        f'model.compile(backend="farskip", fullgraph=True, options={{"manifest": {option}}}) before it is '
        "called; or, to run it like this all the same, farskip_compile.unguard(model)",
    )
