# SPDX-License-Identifier: Apache-2.0
"""When Dynamo is about to raise an error of its own because a model can't be one graph.

Contract: `before_dynamo_raises` registers what is told so, with the error and the backend that the compile is for; the
error reaches the caller in any case, and may be given notes. Nothing is told without `fullgraph=True`, where Dynamo
goes on. Checked by running on torch 2.13.0.

`torch.compiler.reset()` forgets callbacks, so each compile registers ours again, before it begins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

from torch._dynamo.callback import CallbackArgs, callback_handler
from torch._dynamo.utils import register_hook_for_recompile_user_context

from farskip_compile._compat.limit import COMPILES
from farskip_compile._compat.reached import Compiler, compiler_of

DEPTH = 16
"""The function that compiles a frame stands so far above the callback at most: context managers are between them."""


def before_dynamo_raises(tell: Callable[[Exception, Compiler], None]) -> None:
    """Call `tell` with each error that a capture with `fullgraph=True` ends in, whoever raised it."""

    def callback(_: CallbackArgs) -> None:
        error = sys.exc_info()[1]  # the callbacks run while it passes
        compiler = _compiler_of_one_graph(sys._getframe(1)) if isinstance(error, Exception) else None
        if isinstance(error, Exception) and compiler is not None:
            tell(error, compiler)

    def register() -> str:
        if callback not in callback_handler.end_callbacks:
            callback_handler.register_end_callback(callback)
        return ""

    register_hook_for_recompile_user_context(register)


def _compiler_of_one_graph(frame: FrameType | None) -> Compiler | None:
    """The backend of the compile that a frame belongs to; None without `fullgraph=True`."""
    for _ in range(DEPTH):
        if frame is None or frame.f_code.co_name == COMPILES:
            break
        frame = frame.f_back
    known = frame.f_locals if frame is not None and frame.f_code.co_name == COMPILES else {}
    return compiler_of(known.get("compiler_fn")) if known.get("one_graph") else None
