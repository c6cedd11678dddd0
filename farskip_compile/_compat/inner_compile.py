# SPDX-License-Identifier: Apache-2.0
"""Inductor with something of ours around the compile of each graph; a part of `_compat`.

A training graph comes in two: Inductor compiles the forward graph at once, inside the call of the backend, and the
backward graph mostly at its first run, when that call has long returned. Both go through the function given here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import fx
from torch._dynamo.exc import RestartAnalysis


def compile_inside(
    compiler: Any, module: fx.GraphModule, inputs: Sequence[Any], around: Callable[[], AbstractContextManager[None]]
) -> Callable[..., Any]:
    """What `compiler(module, inputs)` of `inductor_compiler` does, with `around()` around the compile of each graph."""
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner  # imports much

    def compile_one(*args: Any, **kwargs: Any) -> Any:
        with around():
            return compile_fx_inner(*args, **kwargs)

    compiled: Any = compile_fx(module, list(inputs), inner_compile=compile_one, config_patches=compiler.config)
    assert callable(compiled)  # from a graph of Dynamo, nothing else comes
    return compiled


def restarts_analysis(error: BaseException) -> bool:
    """Whether `error` only tells Dynamo to analyse the frame once more."""
    return isinstance(error, RestartAnalysis)
