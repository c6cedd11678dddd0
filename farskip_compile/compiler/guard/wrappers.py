# SPDX-License-Identifier: Apache-2.0
"""Guards of the wrappers that `torch.compile(model, backend="farskip")` returns.

A wrapper has the attributes of the model in it, so that `generate` is the model's own, and calls the model as it is;
`torch.export` switches compiling off and does the same. An outer `torch.compile` with another backend traces through
the wrapper, or takes the model out of it, as `torch.compiler.disable` does; a stance keeps it from compiling.

Contract: watched are wrappers with this backend, unless the options keep the function, of models that are not compiled
in place as well. Each of these is an `OriginalWiringError`, or with `strict=False` one `FarSkipWarning` for each
wrapper:
- a method that is reached through the wrapper calls the model, in this thread, in code that is not traced for this
  backend;
- in a call of the wrapper, no graph of this backend runs and nothing is traced for it;
- another backend traces through the wrapper;
- the wrapper is compiled, disabled by `torch.compiler.disable`, or exported.
Methods that do not call the model (`save_pretrained`, `to`, `config`) work. Parts that are taken out of the model
(`wrapper.model(...)`) are not watched.
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
from farskip_compile.compiler.guard.report import report_original_wiring

ReportWrapper = Callable[[], None]
_report: ContextVar[ReportWrapper | None] = ContextVar("farskip_reached", default=None)
"""The function to call if the model is called: set while a method of the wrapper runs."""


def watch() -> None:
    """Watch all wrappers from now on. The import of the backend calls this once."""
    watch_wrappers(_watched_method, _check_export, _check_trace, _checked_call)


def _watched_method(wrapper: nn.Module, name: str) -> Callable[[Method], Method] | None:
    """Return a decorator for the method `name` of the model that reports calls of the model, or None."""
    compiler, model = _rewiring_compiler(wrapper), unwrapped(wrapper)
    models = [*adapters.modules_that_generate(model)]
    if compiler is None or any(map(is_compiled, models)):
        return None
    reason = (
        f"`{name}` runs the model in its original wiring: the wrapper that torch.compile returns hands it to the model "
        "in it, and only a call of the wrapper itself runs rewired"
    )
    hint = adapters.WAY_OUT
    if models == [model]:
        hint = 'model.compile(backend="farskip", fullgraph=True), in place, and use the model itself'
    report = functools.partial(report_original_wiring, wrapper, reason, hint, strict=is_strict(compiler))

    def watched(method: Method) -> Method:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with _reporting_calls(models, report):
                return method(*args, **kwargs)

        return call

    return watched


def _check_export(wrapper: nn.Module) -> None:
    compiler = _rewiring_compiler(wrapper)
    if compiler is not None:
        reason = "torch.export of what torch.compile returned exports the model in its original wiring"
        hint = "farskip_compile.export(model, *args), or export the model itself if that is what is wanted"
        report_original_wiring(wrapper, reason, hint, strict=is_strict(compiler))


def _check_trace(wrapper: nn.Module) -> None:
    compiler = _rewiring_compiler(wrapper)
    if compiler is not None and not traced_by_us():
        reason = (
            "a torch.compile with another backend traces through what torch.compile returned, drops that, and compiles "
            "the model in its original wiring"
        )
        hint = "compile the outer function with this backend, or leave it uncompiled, and the model in it compiled"
        report_original_wiring(wrapper, reason, hint, strict=is_strict(compiler))


def check_recompiled_wrapper(wrapper: nn.Module, new: Compiler | None) -> None:
    """Check a wrapper that is compiled again with `new`, or disabled if `new` is None (see `watch_compiles`)."""
    compiler = _rewiring_compiler(wrapper)
    if compiler is not None and (new is None or not is_ours(new)):
        cause = "torch.compiler.disable" if new is None else "another torch.compile"
        reason = f"{cause} of what torch.compile returned drops that, and runs the model in its original wiring"
        hint = "call what torch.compile returned; or give it the model itself, if that is what is wanted"
        report_original_wiring(wrapper, reason, hint, strict=is_strict(compiler))


def _checked_call(wrapper: nn.Module, call: Callable[[], Any]) -> Any:
    before = activity()
    result = call()
    compiler = _rewiring_compiler(wrapper)
    if compiler is not None and activity() == before and not torch.compiler.is_compiling():
        name = stance()
        cause = f"torch.compiler.set_stance({name!r})" if name != "default" else "no graph of it ran"
        reason = f"what torch.compile returned was called, and ran the model in its original wiring: {cause}"
        report_original_wiring(wrapper, reason, "call it outside of the stance", strict=is_strict(compiler))
    return result


def _rewiring_compiler(wrapper: nn.Module) -> Compiler | None:
    """Return the compiler of `wrapper` if it is this backend and changes the function, or else None."""
    compiler = compiled_for(wrapper)
    return compiler if compiler is not None and is_ours(compiler) and changes_function(compiler) else None


@contextmanager
def _reporting_calls(models: Sequence[nn.Module], report: ReportWrapper) -> Iterator[None]:
    handles = [model.register_forward_pre_hook(_report_call) for model in models]
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)
        for handle in handles:
            handle.remove()


def _report_call(_: nn.Module, __: Any) -> None:
    _report_unless_traced()


@torch.compiler.assume_constant_result
def _report_unless_traced() -> None:
    if (report := _report.get()) is not None and not traced_by_us():
        report()
