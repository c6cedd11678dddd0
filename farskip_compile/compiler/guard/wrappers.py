# SPDX-License-Identifier: Apache-2.0
"""What `torch.compile(model, backend="farskip")` hands to the model in it does not run that model unnoticed.

The wrapper that `torch.compile` returns has the attributes of the model in it, so that `generate` is the model's own,
and calls the model as it is; `torch.export` switches compiling off and does the same.

An outer `torch.compile` with another backend traces through the wrapper, or takes the model out of it, as
`torch.compiler.disable` does; a stance keeps it from compiling.

Contract: for wrappers with this backend alone, of models that are not compiled in place as well. A method that is
reached through the wrapper stays what it is until it calls the model, in this thread, in code that is not traced for
this backend: then an `OriginalWiringError`, or with `strict=False` one `FarSkipWarning` for each wrapper. So is a call
of the wrapper in which no graph of this backend ran and nothing was traced for it, a trace through the wrapper for
another backend, and a compile or `torch.compiler.disable` of it, unless the options keep the function. What does not
call the model (`save_pretrained`, `to`, `config`) works. Parts that are taken out of the model (`wrapper.model(...)`)
are not looked after.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from farskip_compile._compat.modules import is_compiled, unwrapped
from farskip_compile._compat.reached import Compiler, Method, compiled_for, stance, watch_wrappers
from farskip_compile.compiler.guard import adapters
from farskip_compile.compiler.guard.activity import activity
from farskip_compile.compiler.guard.compilers import changes_function, is_ours, is_strict, traced_by_us
from farskip_compile.compiler.guard.report import original_wiring

ReportWrapper = Callable[[], None]
_reached: ContextVar[ReportWrapper | None] = ContextVar("farskip_reached", default=None)
"""What to do if the model is called: set while a method of the wrapper runs."""


def watch() -> None:
    """Watch all wrappers, from now on. Called once, with the import of the backend."""
    watch_wrappers(_around, _exported, _traced, _call)


def _around(wrapper: nn.Module, name: str) -> Callable[[Method], Method] | None:
    compiler, model = compiled_for(wrapper), unwrapped(wrapper)
    if not _rewires(compiler) or any(map(is_compiled, adapters.inside(model))):
        return None
    assert compiler is not None
    reason = (
        f"`{name}` runs the model in its original wiring: the wrapper that torch.compile returns hands it to the model "
        "in it, and only a call of the wrapper itself runs rewired"
    )
    called = [*adapters.inside(model)]
    way_out = (
        'model.compile(backend="farskip", fullgraph=True), in place, and use the model itself'
        if called == [model]
        else adapters.WAY_OUT
    )
    report = functools.partial(original_wiring, wrapper, reason, way_out, strict=is_strict(compiler))

    def around(method: Method) -> Method:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with _watched(called, report):
                return method(*args, **kwargs)

        return call

    return around


def _exported(wrapper: nn.Module) -> None:
    compiler = compiled_for(wrapper)
    if compiler is not None and _rewires(compiler):
        reason = "torch.export of what torch.compile returned exports the model in its original wiring"
        way_out = "farskip_compile.export(model, *args), or export the model itself if that is what is wanted"
        original_wiring(wrapper, reason, way_out, strict=is_strict(compiler))


def _traced(wrapper: nn.Module) -> None:
    compiler = compiled_for(wrapper)
    if compiler is not None and _rewires(compiler) and not traced_by_us():
        reason = (
            "a torch.compile with another backend traces through what torch.compile returned, drops that, and compiles "
            "the model in its original wiring"
        )
        way_out = "compile what is around it with this backend, or leave it uncompiled, and the model in it compiled"
        original_wiring(wrapper, reason, way_out, strict=is_strict(compiler))


def taken_out(wrapper: nn.Module, new: Compiler | None) -> None:
    """See to a wrapper that is compiled again, or disabled (None): see `watch_compiles`."""
    compiler = compiled_for(wrapper)
    if compiler is not None and _rewires(compiler) and (new is None or not is_ours(new)):
        what = "torch.compiler.disable" if new is None else "another torch.compile"
        reason = f"{what} of what torch.compile returned drops that, and runs the model in its original wiring"
        way_out = "call what torch.compile returned; or give it the model itself, if that is what is wanted"
        original_wiring(wrapper, reason, way_out, strict=is_strict(compiler))


def _call(wrapper: nn.Module, call: Callable[[], Any]) -> Any:
    before = activity()
    result = call()
    if activity() == before and not torch.compiler.is_compiling():
        compiler = compiled_for(wrapper)
        if compiler is not None and _rewires(compiler):
            reason = "what torch.compile returned was called, and ran the model in its original wiring: "
            reason += (
                f"torch.compiler.set_stance({name!r})" if (name := stance()) != "default" else "no graph of it ran"
            )
            original_wiring(wrapper, reason, "call it outside of the stance", strict=is_strict(compiler))
    return result


def _rewires(compiler: Compiler | None) -> bool:
    return compiler is not None and is_ours(compiler) and changes_function(compiler)


@contextmanager
def _watched(models: Sequence[nn.Module], report: ReportWrapper) -> Iterator[None]:
    handles = [model.register_forward_pre_hook(_called) for model in models]
    token = _reached.set(report)
    try:
        yield
    finally:
        _reached.reset(token)
        for handle in handles:
            handle.remove()


def _called(_: nn.Module, __: Any) -> None:
    _refuse_unless_traced()


@torch.compiler.assume_constant_result
def _refuse_unless_traced() -> None:
    if (report := _reached.get()) is not None and not traced_by_us():
        report()
