# SPDX-License-Identifier: Apache-2.0
"""One model compiled with several options from one capture: Dynamo sees the same graph each time, and takes longest."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from farskip_compile.compiler.backend import farskip
from farskip_compile.errors import FarSkipError


def compile_each(model: nn.Module, options: Sequence[Mapping[str, Any] | None]) -> list[Callable[..., Any]]:
    """A function for each of `options`; the first call of any of them compiles all, each from a copy of the graph.

    None stands for the graph as it was captured, which is what the backend "eager" runs. A refusal is raised by the
    function that was asked for, each time it is called; the others are what they are.
    """
    if len(options) == 1 and options[0] is not None:
        return [torch.compile(model, backend="farskip", fullgraph=True, options=dict(options[0]))]
    chosen = 0

    def backend(module: fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        made = [_compiled(copy.deepcopy(module), inputs, one) for one in options]
        return lambda *args: made[chosen](*args)

    compiled = torch.compile(model, backend=backend, fullgraph=True)

    def run(number: int, *args: Any, **kwargs: Any) -> Any:
        nonlocal chosen
        chosen = number
        return compiled(*args, **kwargs)

    return [functools.partial(run, number) for number in range(len(options))]


def _compiled(
    module: fx.GraphModule, inputs: list[torch.Tensor], options: Mapping[str, Any] | None
) -> Callable[..., Any]:
    if options is None:
        return module.forward
    try:
        return farskip(module, inputs, options=dict(options))
    except FarSkipError as error:
        refusal = error  # Python forgets the name of the clause

    def refuse(*args: Any) -> Any:
        raise refusal

    return refuse
