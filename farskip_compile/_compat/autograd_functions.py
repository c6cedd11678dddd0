# SPDX-License-Identifier: Apache-2.0
"""The frames in which `torch.autograd.Function.apply` looks at its arguments.

Contract: `caller_of_apply` names the frame that called `apply`, if `apply` is what reads an attribute in a given frame.
Until torch 2.13 `apply` is Python and has a frame of its own. From 2.14 on it is C++, and the frame is its caller's:
the call that runs there is looked up in the source, and what it calls by the names that it is called by. A call whose
source is not at hand, or that calls no plain name (`functions[0](x)`), is not recognised there.
Checked by running on torch 2.13.0, 2.14.1 and 2.15.0.
"""

from __future__ import annotations

import ast
import functools
import linecache
from itertools import islice
from types import CodeType, FrameType
from typing import Any

import torch

OWN_CODE: CodeType | None = getattr(getattr(torch.autograd.Function.apply, "__func__", None), "__code__", None)
"""The code of `apply` where it is Python."""
NAMES = (ast.Name, ast.Attribute, ast.Load)


def caller_of_apply(frame: FrameType) -> FrameType | None:
    """Return the frame that called `torch.autograd.Function.apply`, if that reads from `frame`, and else None."""
    if OWN_CODE is not None:
        return frame.f_back if frame.f_code is OWN_CODE else None
    callee = _callee(frame.f_code, frame.f_lasti)
    if callee is None:
        return None
    try:
        called: Any = eval(callee, frame.f_globals, dict(frame.f_locals))
    except Exception:  # a name that is bound no longer, or an attribute that raises
        return None
    owner = getattr(called, "__self__", None)
    is_function = isinstance(owner, type) and issubclass(owner, torch.autograd.Function)
    return frame if is_function and getattr(called, "__name__", "") == "apply" else None


@functools.lru_cache(maxsize=4096)
def _callee(code: CodeType, instruction: int) -> CodeType | None:
    """Return what the call at `instruction` calls, compiled, if names and attributes say it."""
    begin, end, column, end_column = next(islice(code.co_positions(), instruction // 2, None), (None,) * 4)
    if begin is None or end is None or column is None or end_column is None:
        return None
    lines = [linecache.getline(code.co_filename, line).encode() for line in range(begin, end + 1)]
    lines[-1] = lines[-1][:end_column]
    lines[0] = lines[0][column:]
    try:
        call = ast.parse(b"(" + b"".join(lines) + b")", mode="eval").body
    except (SyntaxError, ValueError):
        return None
    match call:
        case ast.Call(func=called) if all(isinstance(node, NAMES) for node in ast.walk(called)):
            return compile(ast.Expression(called), code.co_filename, "eval")
    return None
