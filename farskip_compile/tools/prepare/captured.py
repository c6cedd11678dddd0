# SPDX-License-Identifier: Apache-2.0
"""The question whether Dynamo takes one module as one graph.

Contract: a module and arguments of a call come in; None goes out if the call is one graph, or what is in the way, with
its line. No backend compiles, and the graph does not run. Code that Dynamo skips runs as it is written; state and
parameters are put back.
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

LARGEST_NUMBER_OF_MODULES = 2**16
"""Limit on modules of one class: each is a recompile of the same code, and Dynamo stops after 8."""


class _OneGraph(BaseException):
    """The signal that ends the call once the graph is known."""


def _stop(*_: Any) -> NoReturn:
    raise _OneGraph


def why_not_captured(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Return why `fullgraph=True` fails for a call of a module, or None if it does not."""
    limits_back = allow_recompiles(LARGEST_NUMBER_OF_MODULES)
    try:
        with everything_kept([module], compiles=True), torch.no_grad():
            torch.compile(module, backend=lambda graph, inputs: _stop, fullgraph=True)(*args, **kwargs)
    except _OneGraph:
        return None
    except CAPTURE_ERRORS as error:
        why = not_captured(error)
        return f"{why.reason} ({why.where})" if why.where else why.reason
    finally:
        limits_back()
    return "Dynamo skips it"
