"""How the routers spread the tokens while a model runs, rewired or not.

In:    a model of transformers, batches, and a configuration of the backend.
Out:   logits as usual, and for each MoE layer how many copies of tokens each expert got.
Never: changes what is computed: a mode of dispatch looks on while the rewired graph runs operator by operator.

The grouped experts of transformers count their tokens themselves, with `histc`: that is what is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

from farskip_compile.backend import backend
from farskip_compile.config import FarSkipConfig


class Counting(TorchDispatchMode):
    """Adds up the counts of each MoE layer, in the order in which the layers come."""

    def __init__(self) -> None:
        super().__init__()
        self.load: list[torch.Tensor] = []
        self._layer = 0

    def __enter__(self) -> Counting:
        self._layer = 0
        return super().__enter__()  # type: ignore[no-any-return]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.histc.default:
            count = out.double()
            if self._layer == len(self.load):
                self.load.append(torch.zeros_like(count))
            self.load[self._layer] += count
            self._layer += 1
        return out


def compiled_with_counts(model: Any, config: FarSkipConfig) -> tuple[Callable[..., Any], Counting]:
    """`model` under `config`, and what its routers did in all calls since."""
    counting = Counting()
    eager = replace(config, inner="eager", schedule=False)

    def receive(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        run = backend(eager)(module, inputs)

        def call(*values: Any) -> Any:
            with counting:
                return run(*values)

        return call

    return torch.compile(model, backend=receive, fullgraph=True), counting


def fullest(load: Sequence[torch.Tensor]) -> float:
    """Tokens of the fullest expert over the mean of its layer, mean over layers; 1: all get equally many."""
    return float(torch.stack([layer.max() / layer.mean() for layer in load]).mean())


def moved(load: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Part of the tokens that go to another expert as far as the loads tell, mean over layers."""
    return float(
        torch.stack(
            [(one / one.sum() - two / two.sum()).abs().sum() / 2 for one, two in zip(load, other, strict=True)]
        ).mean()
    )
