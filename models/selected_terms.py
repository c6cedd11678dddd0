# SPDX-License-Identifier: Apache-2.0
"""The routed terms of sub-blocks whose experts are no module of their own: all that depends on a selection.

Contract: while the mode is active and `label` names a sub-block, tensors computed from the result of a top-k are
followed. If one of these is added to a tensor that is not, it enters the sum as a term of that label. Values don't
change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from farskip_compile.models.residual_tensor import ADDS, ResidualTensor

SELECTS = frozenset(["topk", "argmax"])


class SelectedTerms(TorchFunctionMode):
    """A mode that follows the tensors that depend on a selection.

    Args:
        label: returns the label of the routed term of the running sub-block; None to follow nothing.
    """

    def __init__(self, label: Callable[[], str | None]) -> None:
        super().__init__()
        self.label = label
        self.followed: dict[int, torch.Tensor] = {}
        """By identity; the tensors are kept alive, so that ids stay unique."""

    def follows(self, output: Any) -> bool:
        """Return whether a tensor in `output` is known to depend on a selection."""
        return any(id(tensor) in self.followed for tensor in _tensors(output))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func`, and follow its result."""
        kwargs = kwargs or {}
        label = self.label()
        if label is None:
            self.followed.clear()
            return func(*args, **kwargs)
        given = _tensors([*args, *kwargs.values()])
        selected = [tensor for tensor in given if id(tensor) in self.followed]
        if func in ADDS and len(args) == len(given) == 2 and len(selected) == 1 and _alike(*given):
            args = [ResidualTensor.term(arg, label) if arg is selected[0] else arg for arg in args]
        result = func(*args, **kwargs)
        if selected or func.__name__ in SELECTS:
            written = [args[0]] if func.__name__.endswith("_") and not func.__name__.endswith("__") else []
            written += [args[0]] if func.__name__ == "__setitem__" else []
            for tensor in _tensors([result, *written]):
                if not isinstance(tensor, ResidualTensor):
                    self.followed[id(tensor)] = tensor
        return result


def _tensors(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    return [t for value in values for t in _tensors(value)] if isinstance(values, list | tuple) else []


def _alike(left: torch.Tensor, right: torch.Tensor) -> bool:
    plain = not isinstance(left, ResidualTensor) and not isinstance(right, ResidualTensor)
    return plain and left.shape == right.shape and left.is_floating_point() and right.is_floating_point()
