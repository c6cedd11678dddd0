# SPDX-License-Identifier: Apache-2.0
"""Around a compiled part of a model: what it returns in parts becomes a carrier.

Contract: `carrying` is given what the inner backend made of a graph that `boundary.depart` has cut. What comes out is
called by Dynamo's code as the graph that Dynamo has captured would be: it returns as many values, with a carrier in
place of the stream. Sizes that data decides stay unknown to the next graph, on every rank alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from farskip_compile._compat.aot import keep_sizes_open
from farskip_compile.compiler.carrier.handed_out import Rest, refuse_if_changed
from farskip_compile.compiler.carrier.stream import Carrier
from farskip_compile.compiler.carrier.trail import Passed, note
from farskip_compile.errors import Where
from farskip_compile.records.compile import CompileReport


def carrying(compiled: Callable[..., Any], report: CompileReport, *, one_node: bool) -> Callable[..., Any]:
    """`compiled`, as Dynamo expects it; unchanged if the graph of `report` is a whole model.

    `one_node`: to autograd, all that `compiled` does is one node, which begins once it has the gradients of all parts.
    """
    departure = report.departure
    if departure is None:
        return compiled
    passed = Passed(report.table, departure.apart, report.config["connectivity"])
    first = next(iter(report.table.rows), None)
    where = Where(source=report.table.where(first) if first is not None else None)

    def run(*args: Any) -> Any:
        refuse_if_changed(args, where)
        outputs = compiled(*args)
        note(passed)
        if not departure.tail:
            return outputs
        end = len(outputs) - departure.extra
        outputs = outputs if one_node else _joined(outputs)
        returned, parts = list(outputs[:end]), outputs[end:]
        for place, sizes in departure.open_sizes.items():
            keep_sizes_open(parts[place], sizes)
        base = returned[departure.positions[0]]
        stream = Carrier(base, Rest(departure.tail, base, tuple(parts)))
        for place in departure.positions:
            returned[place] = stream
        return tuple(returned)

    return run


def _joined(outputs: Any) -> list[Any]:
    """The same values, whose gradients must all have come before any goes on: FSDP2 gathers parameters when that of the
    stream has."""
    moving = [at for at, value in enumerate(outputs) if isinstance(value, torch.Tensor) and value.requires_grad]
    joined = list(outputs)
    for at, value in zip(moving, _Join.apply(*(outputs[at] for at in moving)) if moving else (), strict=True):
        joined[at] = value
    return joined


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return gradients
