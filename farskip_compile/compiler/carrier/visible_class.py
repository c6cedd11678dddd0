# SPDX-License-Identifier: Apache-2.0
"""The class that code sees of a carrier between two layers: a tensor's, or the carrier's own.

Contract: a carrier is no tensor, and C++ code that took it for one would read wrong memory; but a hook that asks
`isinstance(x, torch.Tensor)` has to take the branch that it takes for the plain model. Python looks at `x.__class__`
for both, so `visible_class` tells them apart by the frame that reads it: an expression `isinstance(...)` in code
outside of PyTorch and of this package, whose source is at hand, gets a tensor's class. All others get the carrier's own
class. `torch.autograd.Function.apply` would treat the carrier as a constant, and cut off the gradient: that is an
error.
"""

from __future__ import annotations

import linecache
from itertools import islice
from types import FrameType
from typing import Any

import torch

from farskip_compile._compat.autograd_functions import caller_of_apply
from farskip_compile.errors import PartialModelError

IS_TENSOR = torch.is_tensor.__code__
OURS = ("torch", "farskip_compile")


def visible_class(frame: FrameType, own: type, as_tensor: type) -> Any:
    """Return the class that the code in `frame` sees: `own`, or `as_tensor`.

    Raises:
        PartialModelError: an `autograd.Function` takes or returns the stream while gradients are computed.
    """
    if torch.is_grad_enabled() and (caller := caller_of_apply(frame)) is not None and not _is_in_fsdp(caller):
        raise PartialModelError(
            "a torch.autograd.Function, or a checkpoint with use_reentrant=True, takes or returns the residual "
            "stream between two layers that are compiled one by one: its gradient would not pass the function",
            way_out="torch.utils.checkpoint.checkpoint(..., use_reentrant=False); for your own function, a "
            'compile of the whole model: torch.compile(model, backend="farskip", fullgraph=True)',
        )
    if frame.f_code is IS_TENSOR or (_is_foreign(frame) and _runs_isinstance(frame)):
        return as_tensor
    return own


def _is_in_fsdp(frame: FrameType) -> bool:
    """Return whether the code is FSDP2's, whose function passes on what is no tensor, and uses no gradient's value."""
    return str(frame.f_globals.get("__name__", "")).startswith("torch.distributed.fsdp.")


def _is_foreign(frame: FrameType) -> bool:
    """Return whether the code is neither PyTorch's nor this package's."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] not in OURS


def _runs_isinstance(frame: FrameType) -> bool:
    """Return whether the instruction that runs in `frame` is a call that is written `isinstance(...)`."""
    line, _, column, _ = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None), (None,) * 4)
    if line is None or column is None:
        return False
    text = linecache.getline(frame.f_code.co_filename, line, frame.f_globals).encode()
    return text[column:].startswith(b"isinstance(")
