# SPDX-License-Identifier: Apache-2.0
"""Which backend a compile is for, and what passes by the wrapper that `torch.compile(module)` returns.

Contract: nothing is decided here, and nothing changes for modules whose watcher returns None. Checked by running on
torch 2.13.0 only.

`torch.compile(module)` returns an `OptimizedModule` whose unknown attributes are those of the module inside, and tells
its backend nothing before the first call. Its class can't be exchanged for one of ours: Dynamo compares the type itself
where one compiled module calls another. So methods of the class are replaced, once, and the functions by which
`torch.compile` and `torch.compiler.disable` begin, which take the module out of the wrapper.
"""

from __future__ import annotations

import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch._dynamo import OptimizedModule, decorators, eval_frame
from torch._dynamo.backends.distributed import DDPOptimizer
from torch._dynamo.eval_frame import DisableContext, OptimizeContext, innermost_backend, skip_code
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._dynamo.variables.builder import VariableBuilder

Compiler = tuple[Callable[..., Any], Mapping[str, Any]]
"""A backend, and what `torch.compile` calls it with: `options`, `mode`."""


def tracing_for() -> Compiler | None:
    """The backend that Dynamo traces this very code for; None: it runs, or is traced by something else."""
    output = tracing()
    return None if output is None else compiler_of(output.compiler_fn)


def tracing() -> Any:
    """Return the object that Dynamo traces into in this thread, new for each attempt; None if it does not trace."""
    try:
        return InstructionTranslator.current_tx().output
    except AttributeError:  # there is no translator
        return None


def stance() -> str:
    """Return the stance that `torch.compiler.set_stance` set last; `default` means that Dynamo compiles."""
    return str(eval_frame._stance.stance)


def watch_compiles(
    watch: Callable[[nn.Module, Compiler], None], taken_out: Callable[[nn.Module, Compiler | None], None]
) -> None:
    """Replace what compiles.

    Args:
        watch: sees each module that `module.compile(...)` is called of, before it is compiled.
        taken_out: sees each wrapper, or its forward, that is compiled once more, or disabled (None), before that: what
            is made of it calls the module in it, past the wrapper's own backend.
    """
    compile_, disable, innermost = OptimizeContext.__call__, DisableContext.__call__, eval_frame.innermost_fn
    initialize = OptimizedModule._initialize

    @functools.wraps(compile_)
    def compile_watched(self: Any, fn: Any) -> Any:
        owner, compiler = getattr(fn, "__self__", None), compiler_of(self.callback)
        if compiler is not None and isinstance(owner, nn.Module) and fn.__func__ is nn.Module._call_impl:
            watch(owner, compiler)
        if (wrapper := _wrapper_of(fn)) is not None:
            taken_out(wrapper, compiler)
        return compile_(self, fn)

    @functools.wraps(disable)
    def disable_watched(self: Any, fn: Any) -> Any:
        if (wrapper := _wrapper_of(fn)) is not None:
            taken_out(wrapper, None)
        return disable(self, fn)

    @functools.wraps(innermost)
    def innermost_watched(fn: Any) -> Any:
        runs_what_is_compiled = sys._getframe(1).f_code is decorators.run.__code__
        if not runs_what_is_compiled and (wrapper := _wrapper_of(fn)) is not None:
            taken_out(wrapper, None)
        return innermost(fn)

    @functools.wraps(initialize)
    def initialize_watched(self: Any) -> None:
        initialize(self)
        _wrappers[self.dynamo_ctx] = weakref.ref(self)

    watchers: tuple[Any, ...] = (compile_watched, disable_watched, innermost_watched, initialize_watched, _wrapper_of)
    for watched in watchers:  # a program may call these while it is compiled
        skip_code(watched.__code__)
    OptimizeContext.__call__ = compile_watched  # type: ignore[method-assign]
    DisableContext.__call__ = disable_watched  # type: ignore[method-assign]
    vars(decorators)["innermost_fn"] = innermost_watched
    OptimizedModule._initialize = initialize_watched  # type: ignore[method-assign]


_wrappers: WeakKeyDictionary[Any, weakref.ref[OptimizedModule]] = WeakKeyDictionary()
"""The wrapper that each compile of a module has returned; its forward holds the compile, and not the wrapper."""


def _wrapper_of(fn: Any) -> OptimizedModule | None:
    """Return what `torch.compile` returned for a module, if `fn` is that or its forward."""
    if isinstance(fn, OptimizedModule):
        return fn
    if not isinstance(fn, FunctionType) or not hasattr(fn, "_torchdynamo_orig_callable"):
        return None
    held = inspect.getclosurevars(fn).nonlocals.values()
    known = next((_wrappers[one] for one in held if isinstance(one, OptimizeContext) and one in _wrappers), None)
    return known() if known is not None else None


def compiled_for(wrapper: nn.Module) -> Compiler | None:
    """The backend that `torch.compile(module, backend=...)` was called with."""
    return compiler_of(getattr(wrapper.dynamo_ctx, "callback", None))


def compiled_in_place_for(module: nn.Module) -> Compiler | None:
    """The backend that `module.compile(backend=...)` was called with, or `module.forward = torch.compile(...)`."""
    function = getattr(module, "_compiled_call_impl", None) or module.forward
    held = inspect.getclosurevars(function).nonlocals.values() if isinstance(function, FunctionType) else ()
    return next((compiler_of(one.callback) for one in held if isinstance(one, OptimizeContext)), None)


def compiler_of(callback: Any) -> Compiler | None:
    """The backend in what Dynamo calls; None if that is nothing that can be called."""
    if not callable(callback):
        return None
    backend = innermost_backend(callback)
    if isinstance(owner := getattr(backend, "__self__", None), DDPOptimizer):  # cuts the graph, for this backend
        backend = innermost_backend(owner.backend_compile_fn)
    if isinstance(backend, torch._TorchCompileWrapper):
        return backend.compiler_fn, backend.kwargs
    return backend, {}


Method = Callable[..., Any]
Watch = Callable[[nn.Module, str], Callable[[Method], Method] | None]
"""Gets a wrapper, and the name of a method of the module in it; returns what puts something around it, or None."""


def watch_wrappers(
    watch: Watch,
    exported: Callable[[nn.Module], None],
    traced: Callable[[nn.Module], None],
    around_call: Callable[[nn.Module, Callable[[], Any]], Any],
) -> None:
    """Replace what passes by wrappers.

    Args:
        watch: sees each method of a module that is reached through its wrapper.
        exported: sees each wrapper that `torch.export` is about to see through: it calls it, or takes the module out.
        traced: sees each wrapper that Dynamo traces through, which drops the wrapper's own backend.
        around_call: is called in place of each wrapper that is called, with what calls it.
    """
    read, call = OptimizedModule.__getattr__, OptimizedModule.__call__

    @functools.wraps(read)
    def getattr_watched(self: Any, name: str) -> Any:
        found = read(self, name)
        if name == "_orig_mod":
            if torch.compiler.is_exporting():
                exported(self)
            elif sys._getframe(1).f_globals.get("__name__") == VariableBuilder.__module__:
                traced(self)
        elif isinstance(found, MethodType) and found.__self__ is read(self, "_orig_mod"):
            around = watch(self, name)
            return found if around is None else around(found)
        return found

    @functools.wraps(call)
    def call_watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_exporting():
            exported(self)
        return around_call(self, functools.partial(call, self, *args, **kwargs))

    watchers: tuple[Any, ...] = (getattr_watched, call_watched)
    for watched in watchers:
        skip_code(watched.__code__)  # what they call is PyTorch's own, which Dynamo does not trace either
    OptimizedModule.__getattr__ = getattr_watched  # type: ignore[method-assign]
    OptimizedModule.__call__ = call_watched  # type: ignore[method-assign]
