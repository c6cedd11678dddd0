# SPDX-License-Identifier: Apache-2.0
"""One way to change the residual stream: the source that a user writes, and the function that it stands for.

Contract: data. The source names the stream `x`, and its inputs by capital letters (`INPUTS`); `meaning` takes the
stream as it is and the same inputs, and returns what the stream is afterwards. It writes to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WIDTH = 8
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Form:
    """One way to change the stream."""

    source: str
    """Lines of Python."""
    meaning: Callable[..., Tensor]
    """The stream afterwards, of the stream before and the inputs by name."""
    dims: tuple[int, ...] = (2, 3)
    """Numbers of dimensions of a stream that it can be applied to."""
    differentiable: bool = True
    """False: autograd does not see it, so the gradients are not those of `meaning`."""

    def inputs(self) -> list[str]:
        """The inputs that the source names."""
        return [name for name in INPUTS if re.search(rf"\b{name}\b", self.source)]

    def lines(self, number: int) -> list[str]:
        """The source, with inputs named after the change that has this number."""
        text = self.source
        for name in self.inputs():
            text = re.sub(rf"\b{name}\b", f"{name.lower()}{number}", text)
        return text.splitlines()


def _mask(lead: tuple[int, ...], generator: torch.Generator) -> Tensor:
    mask = torch.rand(lead, generator=generator) < 0.4
    mask.view(-1)[0], mask.view(-1)[-1] = False, True
    return mask


def _rows(lead: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randperm(lead[-1], generator=generator)[: max(1, lead[-1] // 2)]


def _all_rows(lead: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randperm(lead[-1], generator=generator)


def _some_flat(lead: tuple[int, ...], generator: torch.Generator) -> Tensor:
    count = torch.Size(lead).numel()
    return torch.randperm(count, generator=generator)[: max(1, count // 3)]


def _values(lead: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(*lead, WIDTH, generator=generator, dtype=torch.float64)


INPUTS: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "M": _mask,
    "K": _rows,
    "P": _all_rows,
    "J": _some_flat,
    "V": _values,
    "R": lambda lead, generator: _values((2,), generator),
}
"""What a change may need: a mask of rows, some rows, a permutation of all rows, some rows counted over all sequences,
a value for each row, two more rows."""


def make_inputs(form: Form, shape: tuple[int, ...], seed: int) -> Inputs:
    """The inputs of `form` for a stream of `shape`."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Any] = {name: INPUTS[name](shape[:-1], generator) for name in INPUTS}
    return {name: made[name] for name in form.inputs()}
