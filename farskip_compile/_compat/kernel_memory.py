# SPDX-License-Identifier: Apache-2.0
"""The private Inductor APIs behind the account of memory; a part of `_compat`.

In:    Inductor's kernels after fusion, in any order that respects their dependences.
Out:   the buffers that the generated program will hold: who makes, completes and uses each, and what it may be written
       over; whether a kernel is put into one function with others; the order that Inductor would choose for memory.
Never: changes a kernel; Inductor's own figures for planning memory are as before.
Checked by running on torch 2.13.0 and 2.15.0.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import fx
from torch._inductor import config as inductor_config
from torch._inductor import ir
from torch._inductor.codegen.wrapper import can_match_buffer_size
from torch._inductor.dependencies import StarDep, WeakDep
from torch._inductor.memory import reorder_for_peak_memory
from torch._inductor.scheduler import NopKernelSchedulerNode, SchedulerNode
from torch._inductor.virtualized import V
from torch.utils._ordered_set import OrderedSet

from farskip_compile._compat.costs import untold
from farskip_compile._compat.inductor import Kernel

HINT_CACHE = "_optimization_hint_cache"
"""The attribute of Inductor's sizes, from torch 2.15 on, that remembers the hint of each expression."""


@dataclass
class KernelBuffer:
    """Memory of a program of kernels."""

    size: int
    """Bytes."""
    maker: int
    """Index of a kernel; -1 for an input."""
    users: list[int]
    kept: bool
    parts: list[int] = field(default_factory=list)
    """Indices of kernels that make a part of it in place, before the maker."""
    over: list[int] = field(default_factory=list)
    """Indices of other buffers that it may be written over, where its maker is the last to use them."""


def joins_neighbours(kernel: Kernel) -> bool:
    """Whether the C++ backend puts the loops of `kernel` into one function with those of the kernels beside it.

    Buffers of that function are allocated before and freed after it (`CppScheduling.flush`). A call of a library, or a
    template, ends it; what makes nothing does not.
    """
    device = kernel.get_device()
    if device is None or device.type != "cpu" or inductor_config.cpu_backend != "cpp":
        return False
    return not (kernel.is_extern() or kernel.is_template() or kernel.is_foreach())


def kernel_buffers(kernels: Sequence[Kernel]) -> list[KernelBuffer]:
    """The buffers of `kernels`, inputs that may be freed included."""
    index = {kernel: i for i, kernel in enumerate(kernels)}
    outputs = set(V.graph.get_output_names())
    found: list[KernelBuffer] = []
    number: dict[str, int] = {}
    made: list[tuple[int, Kernel, Any]] = []
    inputs: dict[str, Any] = {}
    joint = _parts(kernels)
    calls = _calls_of_results(kernels)
    for i, kernel in enumerate(kernels):
        for buffer in kernel.get_outputs():
            info = buffer.mpi_buffer
            if info.size_free and buffer.get_name() not in joint:
                users = [index[user] for user in info.succ_nodes if user in index]
                maker, *taken = calls.get(buffer.get_name(), [i])
                number[buffer.get_name()] = len(found)
                made.append((len(found), kernel, buffer))
                kept = buffer.get_name() in outputs
                found.append(KernelBuffer(int(info.size_free), maker, [*users, *taken], kept))
        planning = getattr(kernel, "mpi_node", None)  # absent if reorder_for_peak_memory is off
        for buffer in planning.pred_buffers if planning is not None else ():
            if not hasattr(buffer, "node"):
                inputs[buffer.get_name()] = buffer.mpi_buffer
    for size, names in _input_memories(inputs):
        users = sorted({index[user] for name in names for user in inputs[name].succ_nodes if user in index})
        found.append(KernelBuffer(size, -1, users, not outputs.isdisjoint(names)))
    for name, (whole, maker, users) in joint.items():
        place = number.get(whole)
        if place is not None:
            found[place].users += users
            found[place].parts.append(maker)
            found[place].kept |= name in outputs
    by_size: dict[int, set[str]] = {}
    for name, place in number.items():
        by_size.setdefault(found[place].size, set()).add(name)
    for place, kernel, buffer in made:
        as_large = by_size[found[place].size]
        found[place].over += [number[name] for name in _in_place(kernel, buffer, as_large)]
    return found


def inductors_order(kernels: Sequence[Kernel]) -> list[Kernel]:
    """`kernels` as Inductor alone would order them: each after what it reads, and then reordered for memory.

    That is without dependences that are for order alone, and without our hints for sizes that depend on data: it takes
    other orders where it knows nothing of these.
    """
    if not kernels:
        return []
    graph: Any = V.graph
    scheduler = kernels[0].scheduler
    with _kept(kernels, scheduler), _without_our_hints(graph):
        for kernel in kernels:
            real = (dep for dep in kernel.unmet_dependencies if not (isinstance(dep, WeakDep) and dep.is_fake))
            kernel.unmet_dependencies = OrderedSet(real)
        found: list[Kernel] = scheduler.topological_sort_schedule(list(kernels))
        if inductor_config.reorder_for_peak_memory:
            inputs, outputs = OrderedSet(graph.graph_inputs), OrderedSet(graph.get_output_names())
            found = reorder_for_peak_memory(found, scheduler.name_to_buf, scheduler.name_to_fused_node, inputs, outputs)
        return found


@contextmanager
def _without_our_hints(graph: Any) -> Iterator[None]:
    """In the `with` block Inductor knows no hint of ours, and has forgotten what it has worked out from them."""
    remembered, graph.dep_size_hint_cache = graph.dep_size_hint_cache, {}
    sizes = vars(graph.sizevars)
    cached = sizes.get(HINT_CACHE)
    if cached is not None:
        sizes[HINT_CACHE] = inspect.unwrap(cached)
    try:
        with untold(graph.sizevars.shape_env):
            yield
    finally:
        graph.dep_size_hint_cache = remembered
        if cached is not None:
            sizes[HINT_CACHE] = cached


@contextmanager
def _kept(kernels: Sequence[Kernel], scheduler: Any) -> Iterator[None]:
    """After the `with` block, dependences and Inductor's figures for planning memory are those before it."""
    names = ("unmet_dependencies", "mpi_node", "mpi_buffer")
    every = (*kernels, *scheduler.name_to_buf.values())
    kept = [(one, name, vars(one)[name]) for one in every for name in names if name in vars(one)]
    try:
        yield
    finally:
        for one, name, value in kept:
            setattr(one, name, value)


def _input_memories(inputs: Mapping[str, Any]) -> list[tuple[int, list[str]]]:
    """The memories that inputs which may be freed lie in: bytes, and the names of all that lie in each.

    What is saved for backward may be a view, alone or beside others, of a larger memory that lives as long as any of
    them. Inductor's own figure is what one reader needs of one input, which may be a piece.
    """
    memories: dict[int, tuple[int, list[str]]] = {}
    alone: list[tuple[int, list[str]]] = []
    lowering: Any = V.graph
    graph: fx.Graph = lowering.graph
    given = {node.target: node.meta.get("val") for node in graph.find_nodes(op="placeholder")}
    kept = {_memory(value)[0] for name, value in given.items() if name not in inputs and _has_memory(value)}
    for name, info in inputs.items():
        value = given.get(name)
        if not info.size_free:
            alone.append((0, [name]))
        elif _has_memory(value) and isinstance((memory := _memory(value))[1], int):
            memories.setdefault(memory[0], (0 if memory[0] in kept else memory[1], []))[1].append(name)
        else:
            alone.append((int(V.graph.get_dep_size_hint(StarDep(name))), [name]))
    return [*memories.values(), *alone]


def _has_memory(value: object) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def _memory(value: torch.Tensor) -> tuple[int, int | torch.SymInt]:
    """Which memory a tensor lies in, and its bytes."""
    storage = value.untyped_storage()
    return storage._cdata, storage.nbytes()


def _calls_of_results(kernels: Sequence[Kernel]) -> dict[str, list[int]]:
    """Of each result of a call that has several: the call, and the kernels that take its results.

    Results are there from the call on, and all of them until the last one is taken, which keeps the tuple until then.
    """
    makers = {buffer.get_name(): i for i, kernel in enumerate(kernels) for buffer in kernel.get_outputs()}
    results: dict[str, dict[str, int]] = {}
    for i, kernel in enumerate(kernels):
        for buffer in kernel.get_outputs():
            source = buffer.node
            while isinstance(source, ir.MultiOutput):
                source = source.inputs[0]
            if source is not buffer.node and source is not None:
                results.setdefault(source.get_name(), {})[buffer.get_name()] = i
    found: dict[str, list[int]] = {}
    for call, taken in results.items():
        if call in makers:
            found |= {name: [makers[call], *taken.values()] for name in taken}
    return found


def _parts(kernels: Sequence[Kernel]) -> dict[str, tuple[str, int, list[int]]]:
    """Of buffers that are made as parts of another one, a concatenation: that one's name, their maker, and their users.

    Inductor accounts for them as memory of their own, and for the whole only where it is complete.
    """
    index = {kernel: i for i, kernel in enumerate(kernels)}
    every = {buffer.get_name(): buffer for kernel in kernels for buffer in kernel.get_outputs()}
    found = {}
    for i, kernel in enumerate(kernels):
        for buffer in kernel.get_outputs():
            whole = buffer
            while whole is not None and isinstance(layout := whole.node.get_output_spec(), ir.NonOwningLayout):
                whole = every.get(layout.view.get_name())
            if whole is not None and whole is not buffer and whole.mpi_buffer.size_free:
                users = [index[user] for user in buffer.mpi_buffer.succ_nodes if user in index]
                found[buffer.get_name()] = (whole.get_name(), i, users)
    return found


def _in_place(kernel: Kernel, buffer: Any, as_large: Collection[str]) -> list[str]:
    """Names of the buffers, of these, that Inductor may write `buffer` over, as `SchedulerNode.decide_inplace_update`
    does if no use of them is left: read by the loops that make it, at the same index, and of the same size."""
    maker = buffer.defining_op
    if not isinstance(maker, SchedulerNode) or not inductor_config.inplace_buffers:
        return []
    made = buffer.node
    if not made.should_allocate() or made.get_inputs_that_alias_output() or made.get_mutation_names():
        return []
    names = []
    for read in maker.read_writes.reads:
        source = maker.scheduler.name_to_buf.get(read.name) if read.name in as_large else None
        if source is None or isinstance(source.defining_op, NopKernelSchedulerNode) or source.node is None:
            continue
        ours = [user for user in source.users if user.node is maker]
        special = (ir.NoneLayout, ir.MultiOutputLayout, ir.MutationLayoutSHOULDREMOVE)
        fits = not isinstance(source.node.get_output_spec(), special) and can_match_buffer_size(source.node, made)
        # in the same kernel, all others must be done when the maker reads
        inside = {part.get_name() for part in kernel.get_nodes()} - {maker.get_name(), *maker.ancestors}
        last = inside.isdisjoint(user.node.get_name() for user in source.users)
        if len(ours) == 1 and ours[0].can_inplace and fits and last and _has_one_index(kernel, read.name):
            names.append(read.name)
    return names


def _has_one_index(kernel: Kernel, name: str) -> bool:
    """Whether all that was fused into `kernel` uses a buffer at the same index."""
    used = {dep for part in kernel.get_nodes() for dep in part.read_writes.reads_and_writes() if dep.name == name}
    return len(used) <= 1
