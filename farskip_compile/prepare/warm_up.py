"""One eager call, for what a model makes in its first call and what can't be captured.

Contract: runs the model once without gradients, on copies of the inputs (a cache passed in is not filled). Buffers,
random numbers and mode are afterwards what they were; what the model made on the side (tables, lazily loaded kernels)
stays, that is the purpose.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from farskip_compile.prepare.preserve_state import copied, state_kept


def warm_up(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Call the model once and put its state back."""
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
    with state_kept([model], tensors), torch.no_grad():
        args, kwargs, _ = copied(args, kwargs, tensors)
        model(*args, **kwargs)
