# SPDX-License-Identifier: Apache-2.0
"""Predicates that tell this package's backends from others.

Contract: a backend is told by the object that Dynamo calls, so that code which another backend traces, `torch.export`
included, is not taken for ours; `torch.compiler.is_compiling()` is true in all of them. A function of the user's around
our backend is not recognised. This module does not import the backend, which imports this module.
"""

from __future__ import annotations

import functools
from typing import Any

from farskip_compile._compat.reached import Compiler, tracing_for

BACKEND_MODULE = "farskip_compile.compiler.backend"
NAME = "farskip"
"""The name of the function there, and of the backend for `torch.compile`."""


def is_ours(compiler: Compiler | None) -> bool:
    """Return whether `compiler` is the function `farskip`, or a `Backend`."""
    return compiler is not None and _function(compiler[0]).__module__ == BACKEND_MODULE


def is_strict(compiler: Compiler) -> bool:
    """Return whether it is an error if a model can't be rewired as asked."""
    return bool(option(compiler, "strict", True))


def changes_function(compiler: Compiler) -> bool:
    """Return whether the options ask for another function than that of the model as it is written."""
    return option(compiler, "connectivity") != "none" or option(compiler, "manifest") is not None


def option(compiler: Compiler, name: str, default: Any = None) -> Any:
    """Return the option `name` of `FarSkipConfig` as it was given, or `default`."""
    function, arguments = compiler
    options = arguments.get("options") or {}
    if isinstance(function, functools.partial):
        options = function.keywords.get("options") or options
    config = getattr(_function(function), "config", None)
    return getattr(config, name) if config is not None else options.get(name, default)


def traced_by_us() -> bool:
    """Return whether Dynamo traces the calling code for our backend."""
    return is_ours(tracing_for())


def _function(backend: Any) -> Any:
    while isinstance(backend, functools.partial):
        backend = backend.func
    return backend
