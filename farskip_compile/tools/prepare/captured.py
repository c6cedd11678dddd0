# SPDX-License-Identifier: Apache-2.0
"""Does Dynamo take a module as one graph? Asked of a copy, on its own.

Contract: a module and arguments of a call come in; None goes out if it is one graph, or what is in the way, with its
line. No backend compiles, and the graph does not run; what Dynamo skips
runs as it is written, and leaves state and parameters alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from farskip_compile._compat import CAPTURE_ERRORS
from farskip_compile._compat.layers import allow_recompiles
from farskip_compile.tools.explain import not_captured
from farskip_compile.tools.prepare.preserve_state import everything_kept

MOST = 2**16
"""Modules of one class may be asked about so often: each is a recompile of the same code, and Dynamo stops after 8."""


class _Whole(BaseException):
    """Ends the call once the graph is known."""


def _stop(*_: Any) -> NoReturn:
    raise _Whole


def why_not_captured(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Why `fullgraph=True` fails for a call of a module, or None."""
    limits_back = allow_recompiles(MOST)
    try:
        with everything_kept([module], compiles=True), torch.no_grad():
            torch.compile(module, backend=lambda graph, inputs: _stop, fullgraph=True)(*args, **kwargs)
    except _Whole:
        return None
    except CAPTURE_ERRORS as error:
        why = not_captured(error)
        return f"{why.reason} ({why.where})" if why.where else why.reason
    finally:
        limits_back()
    return "Dynamo skips it"
