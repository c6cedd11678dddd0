# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of one model for several wishes, captured once: a function, or an error, for each.

Contract: through Dynamo, or as a graph that `traced` writes, which takes a tenth of the time. An error is a
`FarSkipError` with a reason; the function takes what the model takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from farskip_compile import FarSkipError
from tests.compile_each import compile_each
from tests.fuzz.demands import attempt, check_refusal
from tests.fuzz.traced import trace

Layers = tuple[int, int] | None
Wish = tuple[str, Layers]
Function = Callable[..., Any]


class NotCaptured(Exception):
    """Dynamo does not take this model whole."""


def capture(
    model: nn.Module, arguments: Sequence[Tensor], wishes: Sequence[Wish], *, dynamo: bool
) -> list[Function | FarSkipError]:
    """For each wish, what came of it.

    Raises:
        NotCaptured: with `dynamo`.
        Broken: a refusal that is a defect.
    """
    if dynamo:
        return _through_dynamo(model, arguments, wishes)
    with torch.no_grad():
        module = trace(model, arguments)
    single = not isinstance(next(iter(reversed(module.graph.nodes))).meta.get("returns"), tuple)
    found: list[Function | FarSkipError] = []
    for wish in wishes:
        made = attempt(module, *wish, kind=fx.GraphModule, kinds={})
        found.append(made.error if made.error is not None else _called(made.module, single))
    return found


def _called(module: fx.GraphModule, single: bool) -> Function:
    return lambda *given: module(*given)[0] if single else module(*given)


def _through_dynamo(
    model: nn.Module, arguments: Sequence[Tensor], wishes: Sequence[Wish]
) -> list[Function | FarSkipError]:
    torch.compiler.reset()
    found: list[Function | FarSkipError] = []
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        for function in compile_each(model, [_options(wish) for wish in wishes]):
            try:
                with torch.no_grad():
                    function(*arguments)
                found.append(function)
            except FarSkipError as error:
                check_refusal(error)
                found.append(error)
            except torch._dynamo.exc.Unsupported as error:
                raise NotCaptured from error
    return found


def _options(wish: Wish) -> dict[str, Any]:
    connectivity, layers = wish
    return {"inner": "eager", "connectivity": connectivity, **({} if layers is None else {"layers": layers})}
