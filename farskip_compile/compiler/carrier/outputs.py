# SPDX-License-Identifier: Apache-2.0
"""Carriers among the outputs of a compiled part of a model.

Contract: `returning_carriers` takes the callable that the inner backend made of a graph which `boundary.depart` has
cut. It gives a callable with the outputs of the graph that Dynamo has captured, and a carrier in place of the stream.
Sizes that data decides stay unknown to the next graph, on every rank alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from farskip_compile._compat.aot import keep_sizes_open
from farskip_compile.compiler.carrier.model_table import CompiledPart, record
from farskip_compile.compiler.carrier.stream import Carrier
from farskip_compile.compiler.carrier.stream_parts import StreamParts, refuse_if_changed
from farskip_compile.errors import Where
from farskip_compile.records.compile import CompileReport


def returning_carriers(compiled: Callable[..., Any], report: CompileReport, *, one_node: bool) -> Callable[..., Any]:
    """Return `compiled` with carriers among its outputs, or as it is if the graph of `report` is a whole model.

    Args:
        compiled: the compiled graph, which returns the stream in parts.
        report: the report of the graph.
        one_node: True if autograd sees `compiled` as one node, which begins once it has the gradients of all parts.
    """
    departure = report.departure
    if departure is None:
        return compiled
    part = CompiledPart(report.table, departure.apart, report.config["connectivity"])
    first = next(iter(report.table.rows), None)
    where = Where(source=report.table.where(first) if first is not None else None)

    def run(*args: Any) -> Any:
        refuse_if_changed(args, where)
        outputs = compiled(*args)
        record(part)
        if not departure.tail:
            return outputs
        end = len(outputs) - departure.extra
        outputs = outputs if one_node else _with_joint_gradients(outputs)
        returned, others = list(outputs[:end]), outputs[end:]
        for place, sizes in departure.open_sizes.items():
            keep_sizes_open(others[place], sizes)
        base = returned[departure.positions[0]]
        stream = Carrier(base, StreamParts(departure.tail, base, tuple(others)))
        for place in departure.positions:
            returned[place] = stream
        return tuple(returned)

    return run


def _with_joint_gradients(outputs: Any) -> list[Any]:
    """Return the same values behind one node of autograd, which waits for the gradients of all of them.

    FSDP2 gathers parameters when the gradient of the stream has arrived.
    """
    joined = list(outputs)
    positions = [at for at, value in enumerate(outputs) if isinstance(value, torch.Tensor) and value.requires_grad]
    if positions:
        values = _Join.apply(*(outputs[at] for at in positions))
        for at, value in zip(positions, values, strict=True):
            joined[at] = value
    return joined


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return gradients
