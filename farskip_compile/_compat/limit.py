# SPDX-License-Identifier: Apache-2.0
"""When Dynamo is about to give up on a function, and runs it as it is written from then on.

Contract: `before_dynamo_gives_up` registers what is told so, with the backend that the version is compiled for; what it
raises reaches who called the compiled model, and Dynamo then marks nothing, so that the next call meets it again.
Nothing is decided here. Where Dynamo itself would raise (`fullgraph=True`, `fail_on_recompile_limit_hit`), `is_error`
says so. Checked by running on torch 2.13.0.

Dynamo tells nobody: it marks the function and all that it calls, in every model of the process, and writes a line into
its log. But it asks for a description of what surrounds each compile (`register_hook_for_recompile_user_context`)
just before it looks at its limit, so the same question is asked there, of what Dynamo will ask it of.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import torch
import torch._dynamo.config as dynamo_config
from torch import nn
from torch._dynamo.cache_size import exceeds_recompile_limit
from torch._dynamo.utils import register_hook_for_recompile_user_context

from farskip_compile._compat.reached import Compiler, compiler_of
from farskip_compile._compat.runs import module_among

COMPILES = "_compile"
"""The function of Dynamo that asks for the description, and whose arguments say what is compiled."""
ARGUMENTS = ("cache_size", "code", "compile_id", "compiler_fn", "locals", "one_graph")
DEPTH = 3
"""It, and before Python 3.12 the comprehension in it, stand above the hook."""


@dataclass(frozen=True)
class GivenUp:
    """A function that Dynamo compiles no further version of."""

    compiler: Compiler
    name: str
    source: str
    """`file:line` at which it begins."""
    limit: str
    """The setting of `torch._dynamo.config` that is reached."""
    versions: int
    """Its value."""
    reason: str | None
    """Which guard of the last version failed, in Dynamo's words."""
    is_error: bool
    """Dynamo raises an error of its own next, and runs nothing."""
    module: nn.Module | None
    """The first module among the arguments of the function, if there is one."""
    compile_id: str
    """Dynamo's id of the compile that is not made: `[frame/recompile]`."""


def before_dynamo_gives_up(tell: Callable[[GivenUp], None]) -> None:
    """Call `tell` each time, before Dynamo marks the function."""

    def hook() -> str:
        found = _given_up(sys._getframe(1))
        if found is not None:
            tell(found)
        return ""

    register_hook_for_recompile_user_context(hook)


def _given_up(frame: FrameType | None) -> GivenUp | None:
    for _ in range(DEPTH):
        if frame is not None and frame.f_code.co_name == COMPILES:
            break
        frame = frame.f_back if frame is not None else None
    else:
        return None  # asked by something else
    assert frame is not None
    known = frame.f_locals
    if not known.keys() >= {*ARGUMENTS}:  # of a torch that this was not written for: no compile may fail for it
        warnings.warn(f"torch {torch.__version__}: functions beyond Dynamo's limit are not watched", stacklevel=1)
        return None
    exceeded, limit = exceeds_recompile_limit(known["cache_size"], known["compile_id"])
    compiler = compiler_of(known["compiler_fn"])
    if not exceeded or compiler is None:
        return None
    code = known["code"]
    return GivenUp(
        compiler,
        code.co_name,
        f"{code.co_filename}:{code.co_firstlineno}",
        limit,
        getattr(dynamo_config, limit),
        known.get("recompile_reason"),
        bool(known["one_graph"] or dynamo_config.fail_on_recompile_limit_hit),
        module_among(known["locals"].values()),
        str(known["compile_id"]),
    )
