# SPDX-License-Identifier: Apache-2.0
"""The check of `normalize` that every compile makes: what is right passes, and each fault in a graph is named.

`tests/mutation/normalize_faults.py` plants faults in `normalize` itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from torch.utils.checkpoint import checkpoint

from farskip_compile import FarSkipConfig
from farskip_compile.compiler.pipeline import run
from farskip_compile.errors import VerificationError
from farskip_compile.passes import normalize as package
from farskip_compile.passes.boundary import arrive
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.normalize.accumulations import lower
from farskip_compile.passes.normalize.definitions import lower_definitions
from farskip_compile.passes.normalize.single_assignment import mutation_edges
from farskip_compile.verify.normalized.check import verify_normalized
from farskip_compile.verify.normalized.memory import Numbers, allocate, narrow, read, write
from farskip_compile.verify.normalized.memory import View as Tensor
from tests.graphs import Layer, MoE, Stack, dynamo, ids
from tests.mutation import written_programs as programs
from tests.mutation.normalize_faults import captured

x, s = torch.linspace(-2, 2, 12).view(4, 3), torch.linspace(1, 3, 12).view(4, 3)
PROGRAMS = [
    *(programs.operators, programs.two_views, programs.rows, programs.moved_rows, programs.transposed),
    *(programs.of_another_type, programs.copies, programs.puts, programs.functions, programs.inputs, programs.drawn),
    *(programs.unknown, programs.unknown_rows, programs.opened, programs.differences, programs.without_gradients),
    *(programs.in_autocast, programs.exchanged, programs.out_of_order),
]


def checked(module: fx.GraphModule, edit: Callable[[fx.GraphModule], Any] = normalize) -> None:
    before = GraphSnapshot(module.graph)
    edit(module)
    verify_normalized(module, before, mutation_edges(module.graph))


def copy(program: Callable[..., Any]) -> fx.GraphModule:
    module = captured(program)
    return fx.GraphModule(module, GraphSnapshot(module.graph).restore())


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_what_normalize_makes_of_each_way_to_write_passes(program: Callable[..., Any]) -> None:
    checked(copy(program))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_no_call_can_be_lost_or_exchanged(program: Callable[..., Any]) -> None:
    """For each node that is used: other operands, or another node in its place."""
    for place in range(len(copy(program).graph.nodes)):
        module = copy(program)
        before = GraphSnapshot(module.graph)
        normalize(module)
        if _spoil(module.graph, place):
            with pytest.raises(VerificationError):
                verify_normalized(module, before, mutation_edges(module.graph))


def _spoil(graph: fx.Graph, place: int) -> bool:
    """Exchange the first two operands of the node at `place`, or take its first one for it; False: nothing to do."""
    node = next((one for at, one in enumerate(graph.nodes) if at == place and one.op.startswith("call")), None)
    if node is None or len(node.args) < 2 or ops.op_name(node) in ("added_alone", "after_write", "view_as", "add"):
        return False
    first, second = node.args[:2]
    if isinstance(first, fx.Node) and isinstance(second, fx.Node) and first is not second:
        node.args = (second, first, *node.args[2:])
        return True
    return False


# Compiles


class Writes(Layer):
    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        h = self.feed_forward(self.norm2(x))
        h -= 0.5
        return x + h


def test_a_compile_with_a_wrong_normalize_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """`x -= y` written as `x + y` came out "rewired, verified"."""
    from farskip_compile.passes.normalize import single_assignment as assignment

    right = assignment._functional_target
    monkeypatch.setattr(
        assignment, "_functional_target", lambda write, name: operator.add if name == "isub" else right(write, name)
    )
    with pytest.raises(VerificationError, match=r"single-assignment form changed it: '.*' has another value"):
        dynamo(Stack(lambda: Writes(MoE())), ids(), edit=lambda module: run(module, FarSkipConfig(inner="eager")))


def test_checkpoints_that_are_opened_before_normalize_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """`boundary.arrive` opens them: the graph is recorded before it runs."""

    class Checkpointed(Layer):
        def forward(self, x):
            mixed = checkpoint(lambda a, b: (a * 2 - b, b), self.attention(self.norm1(x)), x, use_reentrant=False)
            return mixed[0] + self.feed_forward(self.norm2(mixed[0]))

    def wrong(module: fx.GraphModule) -> int:
        opened = package.open_checkpoints(module)
        for node in module.graph.nodes:
            if ops.op_name(node) == "sub":
                node.args = node.args[::-1]
        return opened

    monkeypatch.setattr(arrive, "open_checkpoints", wrong)
    with pytest.raises(VerificationError, match="changed it"):
        dynamo(Stack(lambda: Checkpointed(MoE())), ids(), edit=lambda module: run(module, FarSkipConfig(inner="eager")))


# Gradients and autocast


def gradients(function: Callable[..., Any], normalised: bool) -> list[torch.Tensor | None]:
    def backend(module: fx.GraphModule, _: Any) -> Callable[..., Any]:
        if normalised:
            checked(module)
            lower(module.graph)
            lower_definitions(module.graph)
            module.recompile()
        return module.forward

    torch.compiler.reset()
    given = [one.clone().requires_grad_() for one in (x, s)]
    outputs = torch.compile(function, backend=backend, fullgraph=True)(*given)
    sum((place + 1) * one.float().sum() for place, one in enumerate(outputs)).backward()
    return [*(one.detach() for one in outputs), *(one.grad for one in given)]


def a_write_without_gradients(x, s):
    y = x * 2
    with torch.no_grad():
        y.mul_(s)
    return (y * s,)


def a_detached_view(x, s):
    y, z = x * 2, torch.zeros_like(x)
    y.detach().add_(s)
    z.detach().add_(s)
    return y * s, z * s * x


def data(x, s):
    y = x * 2
    y.data.mul_(s)
    y.add_(1.0)
    return (y * s,)


def a_copy_without_gradients(x, s):
    y, z = x * 2, torch.zeros_like(x)
    with torch.no_grad():
        y.copy_(s)
        z.copy_(s)
    return y * s, z * x


@pytest.mark.parametrize(
    "function",
    [a_write_without_gradients, a_detached_view, data, a_copy_without_gradients, programs.in_autocast],
    ids=lambda function: function.__name__,
)
def test_writes_that_are_another_function_out_of_place_stay(function: Callable[..., Any]) -> None:
    """Their out-of-place forms gave other gradients, or were cast by autocast: normalised all the same, in silence."""
    for one, other in zip(gradients(function, True), gradients(function, False), strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)


def test_a_copy_is_laid_out_as_its_memory() -> None:
    """`view` of a copy of a transposed tensor failed, and `as_strided` read other elements."""

    def f(x, s):
        y = torch.empty_like(x)
        y.copy_(s.t().contiguous().t())
        return (y.view(-1) * 1,)

    _, (found,) = dynamo(f, x, s, edit=checked)
    assert torch.equal(found, s.flatten())


# The law of memory


def test_a_part_holds_what_was_written_to_it_last() -> None:
    numbers = Numbers()
    memory = allocate(numbers.of("whole"))
    fake = torch.empty(4, 3)

    def view(lens: Any) -> Tensor:
        return Tensor(memory, lens, 0, torch.empty(0))

    whole = view(memory.root)
    row = view(narrow(memory.root, numbers.of("row"), numbers, fake[0]))
    cell = view(narrow(row.lens, numbers.of("cell"), numbers, fake[0, :1]))
    column = view(narrow(memory.root, numbers.of("column"), numbers, fake[:, 0]))
    first = read(column, numbers)
    write(row, 1001, numbers)
    assert read(row, numbers) == 1001
    changed = read(column, numbers), read(whole, numbers), read(cell, numbers)
    assert first not in changed
    write(cell, 1002, numbers)
    assert read(cell, numbers) == 1002
    assert 1001 != read(row, numbers) != changed[2]
    write(column, 1003, numbers)
    assert read(column, numbers) == 1003
    assert read(cell, numbers) != 1002  # the column lies across
    write(whole, 1004, numbers)
    assert read(whole, numbers) == 1004
    again = view(narrow(memory.root, numbers.of("the first three"), numbers, fake.view(-1)[:3]))
    write(row, 1005, numbers)
    assert read(again, numbers) == 1005  # the same elements, by another way


PAIRS = torch.library.Library("farskip_pairs", "DEF")
PAIRS.define("pair(int size) -> (Tensor, Tensor)")
PAIRS.impl("pair", lambda size: (torch.ones(size), torch.zeros(size)), "CompositeExplicitAutograd")
torch.library.register_fake("farskip_pairs::pair", lambda size: (torch.ones(size), torch.ones(size)), lib=PAIRS)


def test_an_operator_may_return_several_tensors_and_take_none() -> None:
    """Engines have such ones: buffers that a library hands out."""

    def function(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        one, two = torch.ops.farskip_pairs.pair(3)
        x = x * one
        x += s * two
        return x

    checked(copy(function))
