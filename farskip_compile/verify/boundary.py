# SPDX-License-Identifier: Apache-2.0
"""Proof of a cut: the parts that a graph returns, put together by their tail, are the stream that it returned before.

Contract: `record` is called before the cut, `verify_cut` after it, on the graph and the tail as they are; what `depart`
meant to do is not asked, and no code is shared with it. Linear.

Algorithm: append the tail to a copy of the graph. Every output must then have the number (`values`) that it had, in the
same place, and side effects must be the same, in the same order.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from farskip_compile._compat.fake import fake_mode_of
from farskip_compile.errors import VerificationError, Where
from farskip_compile.passes.boundary.tail import Departure, tail_of
from farskip_compile.passes.graph import ops
from farskip_compile.passes.normalize.accumulations import mark_accumulations
from farskip_compile.passes.normalize.checkpoints import open_checkpoints
from farskip_compile.passes.residual.sums import read_dataflow
from farskip_compile.verify.steps import evaluate
from farskip_compile.verify.values import read_steps


@dataclass(frozen=True)
class Returned:
    """What a graph returns, and does besides."""

    numbers: tuple[int | None, ...]
    """Of each output; None if it is a constant."""
    effects: tuple[str, ...]


def record(graph: fx.Graph) -> Returned:
    """What `graph` returns now."""
    flow = read_dataflow(graph)
    program = read_steps(flow)
    numbers = evaluate(program.steps)
    (output,) = graph.find_nodes(op="output")
    returned = (numbers[flow.order[one]] if isinstance(one, fx.Node) else None for one in output.args[0])
    return Returned(tuple(returned), tuple(program.effect_names()))


def verify_cut(graph: fx.Graph, departure: Departure, before: Returned) -> None:
    """Check that `graph` and the tail of `departure` return what the graph did before the cut.

    Raises:
        VerificationError: naming the output.
    """
    if not departure.tail:
        return
    after = record(_with_tail(graph, departure))
    if after.effects != before.effects:
        raise _error("what it does besides computing values is not what it was, or not in the same order")
    for place, (old, new) in enumerate(zip(before.numbers, after.numbers, strict=True)):
        if old != new:
            name = "the stream" if place in departure.positions else f"output {place}"
            raise _error(f"{name} is not what it was")


def verify_closed(module: fx.GraphModule, before: Returned) -> None:
    """Check that `module`, whose selective checkpoints were closed again, computes what it did with them open.

    Raises:
        VerificationError: it does not.
    """
    opened = fx.GraphModule(module, copy.deepcopy(module.graph))
    open_checkpoints(opened)
    mark_accumulations(opened.graph)
    if record(opened.graph) != before:
        raise _error("its selective checkpoints do not hold what they held")


def verify_lowered(graph: fx.Graph, before: Returned) -> None:
    """Check that `graph`, whose marks were erased or written out, computes what it did with them.

    Raises:
        VerificationError: it does not.
    """
    marked = copy.deepcopy(graph)
    mark_accumulations(marked)
    if record(marked) != before:
        raise _error("its accumulations do not add what they added", "a graph that is written out")


def _with_tail(graph: fx.Graph, departure: Departure) -> fx.Graph:
    whole = fx.Graph(graph.owning_module)
    copies: dict[fx.Node, Any] = {}
    (output,) = graph.find_nodes(op="output")
    for node in graph.nodes:
        if node is not output:
            copies[node] = whole.node_copy(node, copies.__getitem__)
    returned = [copies.get(one, one) for one in output.args[0]]
    end = len(returned) - departure.extra
    parts = [returned[departure.positions[0]], *returned[end:]]
    tail = tail_of(departure.tail).module.graph
    mode = fake_mode_of(value for part in parts if (value := ops.tensor(part)) is not None)
    with mode or nullcontext(), torch.no_grad():
        for node in tail.nodes:
            if node.op == "placeholder":
                copies[node] = parts.pop(0)
            elif node.op != "output":
                copies[node] = whole.node_copy(node, copies.__getitem__)
                copies[node].meta = {"example_value": _value(copies[node])}
    (end_of_tail,) = tail.find_nodes(op="output")
    stream = copies[end_of_tail.args[0]]
    whole.output(tuple(stream if at in departure.positions else one for at, one in enumerate(returned[:end])))
    mark_accumulations(whole)
    return whole


def _value(node: fx.Node) -> Any:
    known: Any = ops.fake
    args, kwargs = fx.map_arg((node.args, node.kwargs), known)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    call: Any = node.target
    return call(*args, **kwargs)


def _error(reason: str, what: str = "a layer that is cut off at its end") -> VerificationError:
    return VerificationError(
        f"{what}: {reason}",
        way_out="nothing was compiled; please report this: it is a defect of farskip-compile",
        where=Where(),
    )
