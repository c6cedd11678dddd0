# SPDX-License-Identifier: Apache-2.0
"""What kernels would hold in the order of the graph before it was scheduled; and pins that end with fusion."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx
from torch._inductor.dependencies import StarDep, WeakDep
from torch.utils._ordered_set import OrderedSet

from farskip_compile._compat import inductor, kernel_memory
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.schedule.from_graph import PLACE, remember_order
from farskip_compile.passes.schedule.from_kernels import read_kernels, unscheduled_order
from farskip_compile.passes.schedule.memory import live_bytes
from farskip_compile.passes.schedule.program import Buffer, Program, Task


class Kernel:
    """As much of Inductor's as is asked: one operator that makes one buffer of its name, and what is fused with it."""

    def __init__(self, name: str, node: fx.Node | None, *needs: str, order: tuple[str, ...] = ()) -> None:
        self.name = name
        self.node = None if node is None else SimpleNamespace(get_origin_node=lambda: node, origins=[node])
        self.mutation_renames: dict[str, str] = {}
        deps = [*(StarDep(need) for need in needs), *(WeakDep(need, "elsewhere", is_fake=True) for need in order)]
        self.unmet_dependencies = set(deps)
        self.read_writes = SimpleNamespace(reads=set(deps))
        self.ancestors = OrderedSet((*needs, *order))
        self.parts = [self]

    def get_name(self):
        return self.name

    def get_operation_names(self):
        return OrderedSet([self.name])

    def get_buffer_names(self):
        return [self.name]

    def get_nodes(self):
        return self.parts

    def add_fake_dep(self, dep):
        self.unmet_dependencies.add(dep)


def test_the_first_order_of_the_graph_decides() -> None:
    """Two large values, each folded into a small one: at first one after another, then both at once."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    make = [graph.call_function(torch.exp, (x,)), graph.call_function(torch.sin, (x,))]
    fold = [graph.call_function(torch.sum, (node,)) for node in make]
    make[1].append(fold[0])
    fold[0].append(make[1])
    a, b, a_sum, b_sum = make[0], make[1], fold[0], fold[1]
    assert [node.name for node in graph.nodes] == [node.name for node in (x, a, a_sum, b, b_sum)]
    remember_order(graph)
    a_sum.append(b_sum)
    a.append(b)  # scheduled
    remember_order(graph)  # a second pass over the same graph changes nothing
    assert [node.meta[PLACE] for node in (x, a, a_sum, b, b_sum)] == [0, 1, 2, 3, 4]
    kernels = [
        Kernel("a", a),
        Kernel("b", b),
        Kernel("taken", None, "b"),  # in no node: it comes after what it needs
        Kernel("a_sum", a_sum, "a", order=("b",)),  # a pin, which there was not at first
        Kernel("b_sum", b_sum, "taken"),
    ]
    tasks = tuple(Task(kernel.name, needs) for kernel, needs in zip(kernels, [(), (), (1,), (0, 1), (2,)], strict=True))
    buffers = (Buffer(100, 0, (3,)), Buffer(100, 1, (2, 4)), Buffer(1, 3, kept=True), Buffer(1, 4, kept=True))
    program = Program(tasks, (*buffers, Buffer(1000, kept=True)))
    assert max(live_bytes(program, range(5))) == 1201
    as_written = [kernels[index] for index in (0, 3, 1, 2, 4)]
    with mock.patch.object(kernel_memory, "inductors_order", side_effect=list) as reordered:
        assert max(live_bytes(program, unscheduled_order(kernels))) == 1102
    reordered.assert_called_once_with(as_written)
    with mock.patch.object(kernel_memory, "inductors_order", return_value=kernels):
        assert unscheduled_order(kernels) == (0, 1, 2, 3, 4)
    assert unscheduled_order([]) == ()


def test_a_fused_kernel_has_the_place_of_its_first_operation() -> None:
    """A sum is fused with its norm, which is written after another sum: neither waits for that one."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    parts = graph.call_function(torch.exp, (x,))
    total = graph.call_function(torch.sum, (parts,))
    wide = graph.call_function(torch.sin, (x,))
    folded = graph.call_function(torch.sum, (wide,))
    norm = graph.call_function(torch.sqrt, (total,))
    remember_order(graph)
    fused = Kernel("fused", total, "parts")
    fused.parts.append(Kernel("norm", norm))
    kernels = [Kernel("parts", parts), Kernel("wide", wide), fused, Kernel("folded", folded, "wide")]
    tasks = tuple(Task(kernel.name, needs) for kernel, needs in zip(kernels, [(), (), (0,), (1,)], strict=True))
    program = Program(tasks, (Buffer(100, 0, (2,)), Buffer(100, 1, (3,)), *(Buffer(1, i, kept=True) for i in (2, 3))))
    with mock.patch.object(kernel_memory, "inductors_order", side_effect=list):
        order = unscheduled_order(kernels)
    assert order == (0, 2, 1, 3)
    assert max(live_bytes(program, order)) == 102


def test_what_is_computed_anew_in_a_kernel_does_not_move_it() -> None:
    """A constant is written once, and made again by each kernel that reads it: the second one is still the last."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    constant = graph.call_function(torch.zeros, (8,))
    nodes = [graph.call_function(function, (x, constant)) for function in (torch.add, torch.sub, torch.mul)]
    remember_order(graph)
    kernels = [Kernel(str(i), node) for i, node in enumerate(nodes)]
    for kernel in (kernels[0], kernels[2]):
        kernel.node.origins.append(constant)  # type: ignore[union-attr]
    with mock.patch.object(kernel_memory, "inductors_order", side_effect=list):
        assert unscheduled_order(kernels) == (0, 1, 2)


def test_pins_end_with_fusion_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "is_wait_kernel", lambda kernel: kernel.name == "wait")
    launch, product = Kernel("launch", None), Kernel("product", None, "x", order=("reader",))
    wait, copy = Kernel("wait", None, "launch", order=("written",)), Kernel("copy", None, "wait")
    before = [set(kernel.unmet_dependencies) for kernel in (launch, product, wait, copy)]
    for kernel in (wait, copy):  # as Inductor makes of a control dependence; only the graph's pins end
        kernel.add_fake_dep(WeakDep("product", kernel.name, is_fake=True))
    before[3] = set(copy.unmet_dependencies)
    inductor.pin_kernels([launch, product, wait, copy], {product: [launch]})
    assert set(product.ancestors) == {"launch", "reader", "x"}
    assert inductor.kernel_needs(product) == ["launch", "reader", "x"]
    assert inductor.kernel_reads(product) == ["x"]
    assert inductor.kernel_needs(wait) == ["launch", "product", "written"]
    inductor.unpin_kernels([launch, product, wait, copy])
    assert [kernel.unmet_dependencies for kernel in (launch, product, wait, copy)] == before


def test_what_an_ancestor_reads_may_be_written_over() -> None:
    """After unpinning only what runs in the same kernel is known to have run; the rest Inductor knows once it has."""
    first, second = Kernel("first", None, "x"), Kernel("second", None, "first", order=("far",))
    fused = Kernel("fused", None)
    fused.get_nodes = lambda: [first, second]  # type: ignore[method-assign]
    fused.get_operation_names = lambda: OrderedSet(["first", "second"])  # type: ignore[method-assign]
    assert set(second.ancestors) == {"first", "far"}
    inductor.unpin_kernels([fused])
    assert list(second.ancestors) == ["first"]
    assert not first.ancestors


def test_a_reader_stays_behind_a_write_whose_name_it_may_forget() -> None:
    """`zeros` is written in place by `scatter`, under which name the reader depends on it, until its loops are worked
    out anew."""
    reader, other = Kernel("reader", None, "scatter", "x"), Kernel("other", None, "zeros")
    reader.mutation_renames = {"zeros": "scatter"}
    inductor.keep_order_of_writes([reader, other])
    (added,) = reader.unmet_dependencies - reader.read_writes.reads
    assert (added.name, added.is_fake) == ("scatter", True)
    assert other.unmet_dependencies == other.read_writes.reads
    reader.read_writes = SimpleNamespace(reads={StarDep("zeros"), StarDep("x")})
    reader.unmet_dependencies = set(reader.read_writes.reads)
    assert inductor.kernel_needs(reader) == ["scatter", "x", "zeros"]


def closure(needs: list[set[int]]) -> list[set[int]]:
    found: list[set[int]] = []
    for one in needs:
        found.append(one.union(*(found[need] for need in one)))
    return found


@given(st.data())
def test_pinned_kernels_know_all_their_ancestors(data: st.DataObject) -> None:
    """Inductor makes no fusion that would be a cycle only if each kernel knows all that comes before it."""
    count = data.draw(st.integers(1, 12))
    earlier = [st.sets(st.integers(0, max(index - 1, 0)), max_size=2 if index else 0) for index in range(count)]
    needs, pins = [data.draw(one) for one in earlier], [data.draw(one) for one in earlier]
    kernels = [Kernel(str(index), None, *map(str, sorted(one))) for index, one in enumerate(needs)]
    for kernel, ancestors in zip(kernels, closure(needs), strict=True):
        kernel.ancestors = OrderedSet(map(str, sorted(ancestors)))
    inductor.pin_kernels(kernels, {kernels[i]: [kernels[p] for p in sorted(one)] for i, one in enumerate(pins) if one})
    wanted = closure([one | pinned for one, pinned in zip(needs, pins, strict=True)])
    assert [set(map(int, kernel.ancestors)) for kernel in kernels] == wanted


def test_an_order_that_breaks_a_dependence_is_refused() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    reader, writer = graph.call_function(torch.exp, (x,)), graph.call_function(torch.sin, (x,))
    kernels = [Kernel("reader", reader, "writer"), Kernel("writer", writer)]
    with pytest.raises(UnsupportedPatternError, match="reader before writer") as caught:
        read_kernels(kernels, None)
    assert caught.value.where.node == reader.name
