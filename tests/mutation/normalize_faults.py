# SPDX-License-Identifier: Apache-2.0
"""Faults in `normalize`: one line of it is another, and the check of the compile must see what has become of a graph.

Each fault must change a number, a gradient, or what the passes after it are told of the order of reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import fx

from farskip_compile import testing
from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.normalize import (
    axis_moves,
    checkpoints,
    definitions,
    modes,
    normalize,
    plain_calls,
)
from farskip_compile.passes.normalize import single_assignment as assignment
from farskip_compile.verify.normalized.check import verify_normalized
from tests.mutation import written_programs as programs
from tests.mutation.bench import Fault, Verdict, mutated

Program = Callable[..., tuple[torch.Tensor, ...]]


@cache
def captured(program: Program) -> fx.GraphModule:
    """What Dynamo makes of a program, gradients recorded."""
    found: list[fx.GraphModule] = []

    def keep(module: fx.GraphModule, _: Any) -> Callable[..., Any]:
        found.append(fx.GraphModule(module, GraphSnapshot(module.graph).restore()))
        return module.forward

    torch.compiler.reset()
    with testing.fake_ranks(2):
        torch.compile(program, backend=keep, fullgraph=True)(*arguments(program))
    return found[0]


def arguments(program: Program) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(4, 3, generator=generator) for _ in range(2)]
    return made if program is programs.inputs else [one.requires_grad_() for one in made]


def judge(program: Program, function: Callable[..., Any], old: str, new: str) -> Verdict | None:
    captured(program)
    with testing.fake_ranks(2):
        module = captured(program)
        copy = fx.GraphModule(module, GraphSnapshot(module.graph).restore())
        before = GraphSnapshot(copy.graph)
        with mutated(function, old, new):
            normalize(copy)
            try:
                verify_normalized(copy, before, assignment.mutation_edges(copy.graph))
            except VerificationError as error:
                return Verdict.of("verify", error)
    return None


def fault(program: Program, function: Callable[..., Any], old: str, new: str) -> Fault:
    place = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
    return Fault(
        f"{program.__name__}: {old.strip()[:36]} -> {new.strip()[:40]}",
        place,
        lambda: judge(program, function, old, new),
    )


FAULTS = [
    # names of values
    fault(programs.two_views, assignment.assign_once, "if arg in names:", "if False:"),
    fault(programs.two_views, assignment.assign_once, "last_use.get(n, -1) > order[node]", "last_use.get(n, -1) < 0"),
    fault(programs.inputs, assignment.assign_once, "if written in kept:", "if False:"),
    fault(programs.functions, assignment._replace_write, "[base, write, *same], new", "[base, write], new"),
    fault(programs.two_views, assignment._replace_write, "_views_anew(graph, new, fresh, others, names)", "pass"),
    fault(programs.two_views, assignment._views_anew, '"view_as", (new,', '"view_as", (names.get(node, node),'),
    # which views hold the same
    fault(
        programs.moved_rows,
        assignment._same_elements,
        " and same_dim(view.storage_offset(), base.storage_offset())",
        "",
    ),
    fault(
        programs.transposed, assignment._same_elements, "not view.is_contiguous() or not base.is_contiguous() or ", ""
    ),
    # out-of-place forms
    fault(
        programs.of_another_type,
        assignment._replace_write,
        "_cast(graph, functional(graph), value.dtype)",
        "functional(graph)",
    ),
    fault(programs.of_another_type, assignment._cast, "value.dtype == dtype", "True"),
    fault(
        programs.operators,
        assignment._functional_target,
        "getattr(operator, plain, ",
        'getattr(operator, {"sub": "add"}.get(plain, plain), ',
    ),
    fault(
        programs.operators,
        assignment._functional_target,
        "return plain if hasattr",
        'return plain.replace("div", "mul") if hasattr',
    ),
    fault(
        programs.operators,
        assignment._out_of_place,
        "list(write.args), dict(write.kwargs)",
        "list(write.args[::-1]), dict(write.kwargs)",
    ),
    fault(programs.operators, assignment._out_of_place, "dict(write.kwargs)", "{}"),
    fault(
        programs.functions, assignment._out_of_place, "args[position] = False", "args[1] = 0.25; args[position] = False"
    ),
    fault(
        programs.copies,
        assignment._copy_source,
        "copy = graph.call_method",
        "return source\n        copy = graph.call_method",
    ),
    fault(
        programs.copies,
        assignment._copy_source,
        '(source, value.dtype), {"copy": True, **layout}',
        '(base, value.dtype), {"copy": True, **layout}',
    ),
    fault(programs.copies, assignment._copy_source, "or not ops.same_shape(value, new) ", ""),
    fault(programs.puts, assignment._put_at_indices, "(target, indices, value)", "(target, indices[::-1], value)"),
    fault(programs.puts, assignment._put_at_indices, "(target, indices, value)", "(target, indices, value, True)"),
    fault(programs.in_autocast, assignment._out_of_place, "if autocast is not None:", "if False:"),
    fault(programs.in_autocast, modes.Modes.autocast, "if self._autocasts:", "if False:"),
    # gradients
    fault(programs.without_gradients, modes.Modes.are_one_in_gradients, "self._records_gradients and", ""),
    fault(programs.without_gradients, modes.Modes.enter, "name not in DETACHING and", ""),
    # writes that stay
    fault(
        programs.unknown_rows,
        assignment._replace_write,
        "if anew and new is not write:",
        "if new is not write:\n            write.meta[DEFINED] = (effects.storage(base),)\n        if False:",
    ),
    fault(programs.unknown, definitions.define, "(buffer, write)", "(write.args[0], write)"),
    fault(
        programs.inputs, assignment.mutation_edges, "last_write[memory] = node", "last_write.setdefault(memory, node)"
    ),
    fault(programs.inputs, assignment.mutation_edges, "if writes:", "if False:"),
    # checkpoints
    fault(
        programs.opened,
        checkpoints._open,
        "[*call.args[1:], *body_kwargs.values()]",
        "[*call.args[:0:-1], *body_kwargs.values()]",
    ),
    fault(programs.opened, checkpoints._replace_results, "results[user.args[1]]", "results[0]"),
    fault(
        programs.opened,
        checkpoints._copy_body,
        "copies[node] = copy",
        "copies[node] = copies.get(next(iter(node.all_input_nodes), None), copy)",
    ),
    # moves of axes
    fault(
        programs.exchanged, axis_moves.move_axes, '"movedim", move.cut, move.joined', '"movedim", move.joined, move.cut'
    ),
    fault(
        programs.exchanged,
        axis_moves.move_axes,
        '"unflatten", move.cut, (move.chunks, -1)',
        '"unflatten", move.cut, (-1, move.chunks)',
    ),
    fault(programs.out_of_order, axis_moves._chunk_of, "piece.args != (chunk, index)", "False"),
    # sums
    fault(programs.differences, plain_calls._write_binary, "operands = operands[::-1]", "pass"),
    fault(programs.differences, plain_calls._write_binary, "operator.sub", "operator.add"),
    fault(programs.differences, plain_calls._write_binary, 'node.kwargs.get("alpha", 1) != 1 or ', ""),
]
