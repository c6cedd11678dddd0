# SPDX-License-Identifier: Apache-2.0
"""The private Inductor APIs behind scheduling; a part of `_compat`.

Contract: other modules see Inductor's scheduler nodes ("kernels") only through these functions.
Checked by running on torch 2.11.0, 2.13.0 and 2.15.0; presence and signatures by reading on 2.12 and 2.14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from operator import attrgetter
from typing import Any

import torch
from torch import fx
from torch._inductor import config as inductor_config
from torch._inductor import ir
from torch._inductor.dependencies import WeakDep
from torch._inductor.fx_passes.control_dependencies import control_deps, preserve_node_ordering
from torch._inductor.fx_passes.reinplace import inplaceable_ops
from torch._inductor.utils import contains_collective, contains_wait
from torch.utils._ordered_set import OrderedSet

from farskip_compile._compat.marks import COMMUNICATES
from farskip_compile._compat.names import (
    FEWER_PARTS,
    LEFT_OUT,
    LOCALITY,
    PRE_FUSION,
    REORDER,
    REORDER_PASSES,
    REUSE,
    SIMPLE_OVERLAP,
)

try:
    from torch._inductor.custom_graph_pass import CustomSchedulerPass
except ImportError:  # until 2.12 caches know every pass that they can be keyed by by one class, whatever it runs on
    from torch._inductor.custom_graph_pass import CustomGraphPass as CustomSchedulerPass  # type: ignore[assignment]

Kernel = Any
"""`torch._inductor.scheduler.BaseSchedulerNode`: one kernel, or an extern call, after fusion."""


def inductor_setting(key: str) -> Any:
    """The value that a key of Inductor's configuration has now."""
    return attrgetter(key)(inductor_config)


def inductor_settings(values: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Other values of keys of Inductor's configuration, inside of the `with` block."""
    context: AbstractContextManager[None] = inductor_config.patch(dict(values))
    return context


def may_be_written(node: fx.Node) -> tuple[fx.Node, ...]:
    """The tensors that Inductor may let an out-of-place call write to, if nobody reads them any more.

    Functionalised custom operators and user-defined kernels hold them among their keyword arguments.
    """
    target, args, kwargs = node.target, node.args, node.kwargs
    if target is torch.ops.higher_order.with_effects:
        target, args = args[1], args[2:]  # type: ignore[assignment]
    found: list[fx.Node] = []
    if target is torch.ops.higher_order.triton_kernel_wrapper_functional:
        given: Any = kwargs["kwargs"]
        fx.map_arg([given[name] for name in kwargs["tensors_to_clone"]], found.append)  # type: ignore[union-attr]
    elif target is torch.ops.higher_order.auto_functionalized_v2:
        fx.map_arg(kwargs["_all_bases"], found.append)
    elif target is torch.ops.higher_order.auto_functionalized:
        fx.map_arg(kwargs, found.append)  # any may be meant
    elif callable(target) and (known := inplaceable_ops.get(target)) is not None:
        fx.map_arg([args[place] for place in known.mutated_args if place < len(args)], found.append)
    return tuple(found)


def pin(graph: fx.Graph, waits: Mapping[fx.Node, Iterable[fx.Node]]) -> None:
    """Let each wait depend, for order alone, on the nodes given for it."""
    preserve_node_ordering(graph, {wait: OrderedSet(nodes) for wait, nodes in waits.items()})


def pinned(node: fx.Node) -> tuple[Sequence[fx.Node], fx.Node, object, tuple[object, ...], dict[str, object]] | None:
    """What `pin` has made of a node: what it comes after, the node that holds the call, the call's operator, arguments
    and keyword arguments; None for any other node."""
    if node.target is not control_deps:
        return None
    pins, body, *inputs = node.args
    inner = getattr(node.graph.owning_module, str(body.target)).graph  # type: ignore[union-attr]
    outer = dict(zip(inner.find_nodes(op="placeholder"), inputs, strict=True))
    call = next(one for one in inner.nodes if one.op == "call_function")
    args, kwargs = fx.map_arg((call.args, call.kwargs), outer.__getitem__)
    return pins, body, call.target, args, kwargs  # type: ignore[return-value]


PINNED = "pinned by farskip"
"""Stands where other dependences for order alone name what they are for, such as a write to memory that is read."""
WRITTEN = "kept by farskip"
"""The same, of a dependence on a write in place."""


def pin_kernels(kernels: Sequence[Kernel], pins: Mapping[Kernel, Sequence[Kernel]]) -> None:
    """Before fusion: let a kernel run after those given for it, for order alone.

    Such a dependence keeps no memory alive, and a fusion against it is a cycle, which Inductor does not make. It knows
    cycles by the ancestors of each kernel; those that grow are updated here, as computing all of them anew takes time
    and memory quadratic in the size of the graph. `kernels` are all, each after those that it needs.
    """
    maker = {name: kernel for kernel in kernels for name in kernel.get_buffer_names()} if pins else {}
    added: dict[Kernel, list[str]] = {}
    for kernel in kernels if pins else ():
        sources = {maker[dep.name] for dep in kernel.unmet_dependencies if maker.get(dep.name) in added}
        before = len(kernel.ancestors)
        for source in sorted(sources, key=lambda one: str(one.get_name())):
            kernel.ancestors.update(added[source])
        for first in pins.get(kernel, ()):
            kernel.add_fake_dep(WeakDep(next(iter(first.get_buffer_names())), mutating_buf=PINNED, is_fake=True))
            if not first.get_operation_names() <= kernel.ancestors:
                kernel.ancestors |= first.get_operation_names()
                kernel.ancestors |= first.ancestors
        if grown := len(kernel.ancestors) - before:
            added[kernel] = list(islice(reversed(kernel.ancestors), grown))  # few, while all of them are many


def unpin_kernels(kernels: Iterable[Kernel]) -> None:
    """After fusion: forget what `pin_kernels` has added, and what waits have to run after for order alone (`pin`).

    Ancestors, too: Inductor takes what an ancestor reads for read, and lets a kernel write over it. But without the
    pins an order may well put that ancestor after the kernel. What has run by then it knows besides, so those within
    the kernel itself are all that it has to be told.
    """
    for kernel in kernels:
        own = kernel.get_operation_names()
        for part in kernel.get_nodes():
            part.ancestors = OrderedSet(name for name in own if name in part.ancestors)
        for dep in [dep for dep in kernel.unmet_dependencies if isinstance(dep, WeakDep) and dep.is_fake]:
            if dep.mutating_buf == PINNED or (is_wait_kernel(kernel) and dep.mutating_buf in own):
                kernel.unmet_dependencies.discard(dep)


def kernel_name(kernel: Kernel) -> str:
    """Name of a kernel in Inductor's logs."""
    return str(kernel.get_name())


def kernel_needs(kernel: Kernel) -> list[str]:
    """Buffers that must be made before `kernel` runs, control dependences included.

    Also those that `keep_order_of_writes` is about, so that an order without them can't pass for a right one.
    """
    needs = {dep.name for dep in kernel.unmet_dependencies}
    for part in kernel.get_nodes():
        needs.update(_renamed_reads(part))
    return sorted(needs)


def keep_order_of_writes(kernels: Iterable[Kernel]) -> None:
    """Before fusion: let readers of a buffer that is written in place stay after the write.

    The write gives the buffer a new name, under which later readers depend on it. Where Inductor works out the loops of
    a reader anew to fuse it (`SchedulerNode.recompute_size_and_body`, on 2.13), the dependence is on the old name
    again, unless the reader has a dependence for order alone besides: then all are renamed. Without it, Inductor's own
    sort after fusion may put the reader before the write.
    """
    for kernel in kernels:
        for name in sorted(_renamed_reads(kernel)):
            kernel.add_fake_dep(WeakDep(name, mutating_buf=WRITTEN, is_fake=True))


def _renamed_reads(kernel: Kernel) -> set[str]:
    """The names that buffers had when `kernel`, one that is not fused, was to read them, of those that were written."""
    renames = kernel.mutation_renames
    reads = {dep.name for dep in kernel.read_writes.reads} if renames else set()
    return {new for old, new in renames.items() if old in reads or new in reads}


def kernel_reads(kernel: Kernel) -> list[str]:
    """Those of them whose contents, or whose end, `kernel` needs: without what is for order alone."""
    dependences = kernel.unmet_dependencies
    return sorted({dep.name for dep in dependences if not (isinstance(dep, WeakDep) and dep.is_fake)})


def kernel_makes(kernel: Kernel) -> list[str]:
    """Buffers that are ready once `kernel` has run."""
    return [str(name) for name in kernel.get_buffer_names()]


def is_launch_kernel(kernel: Kernel) -> bool:
    """Whether `kernel` launches a collective."""
    return bool(contains_collective(kernel)) or _declared_as(kernel, "launch")


def is_wait_kernel(kernel: Kernel) -> bool:
    """Whether `kernel` waits for a collective."""
    return bool(contains_wait(kernel)) or _declared_as(kernel, "wait")


def _declared_as(kernel: Kernel, part: str) -> bool:
    """Whether `kernel` is a call of an operator that was declared as this part of a collective."""
    if not isinstance(kernel.node, ir.FallbackKernel):  # what takes one of many results has the same origin
        return False
    origin = kernel.node.get_origin_node()
    return origin is not None and origin.meta.get(COMMUNICATES) == part


def kernel_parts(kernel: Kernel) -> list[tuple[bool, list[fx.Node]]]:
    """For each kernel that was fused into `kernel`: whether it is a call of a library, and the nodes that it came from.

    The node that stands for the whole part comes first, if Inductor knows it. What takes one result out of a call's
    many is not a part: it runs nothing, although Inductor names the call itself as its origin.
    """
    parts = []
    for part in kernel.get_nodes():
        node = part.node
        if node is None or isinstance(node, ir.MultiOutput):
            continue
        origin = node.get_origin_node()
        origins = [origin] if origin is not None else []
        origins += [one for one in node.origins if one is not origin]
        extern = isinstance(node, ir.ExternKernel | ir.TemplateBuffer) and not isinstance(node, ir.NopKernel)
        parts.append((extern, origins))
    return parts


def kernel_traffic(kernel: Kernel) -> int:
    """Bytes that `kernel` reads and writes in main memory."""
    return int(kernel.get_read_write_buffers_sizes())


def scheduling_options(
    theirs: Mapping[str, Any], hook: Any, before_fusion: Callable[[list[Kernel]], None], identity: str
) -> dict[str, Any]:
    """Inductor options that give `hook` (kernels -> kernels) the last word on the order of kernels.

    `before_fusion` sees the kernels before fusion, after the pass that `theirs` may have in that place, and may pin
    them. Caches are keyed by `hook`, which Inductor pickles, and by `identity`.
    """
    options: dict[str, Any] = {REORDER: True, REORDER_PASSES: [hook]}
    # A block that waits for a later buffer of its size is in no account, and allocators do the same for less.
    options[REUSE] = theirs.get(REUSE, False)
    # In inference this moves each node to just before its first reader, so that the outputs of all experts stay alive,
    # not yet concatenated for the exchange, until the next attention is done.
    options[LOCALITY] = theirs.get(LOCALITY, False)
    # Made after every pass, and without regard to what overlaps. The other key has to be one of the compile's own
    # options: `cuda_graphs.leave_out` changes it for one graph, and the end of the compile puts it back.
    options[FEWER_PARTS] = theirs.get(FEWER_PARTS, False)
    options[LEFT_OUT] = list(theirs.get(LEFT_OUT, inductor_setting(LEFT_OUT)))
    ours = _PreFusion(before_fusion, identity, theirs.get(PRE_FUSION, inductor_setting(PRE_FUSION)))
    # what has no identity must not be of that class: the caches ask for the class, and take None for an identity
    options[PRE_FUSION] = ours if ours.uuid() is not None else ours.__call__
    if SIMPLE_OVERLAP in inductor_config.get_config_copy():  # would move our launches and waits
        options[SIMPLE_OVERLAP] = False
    return options


class _PreFusion(CustomSchedulerPass):
    """The user's own pass in this place, then what Inductor would forget, then ours."""

    def __init__(self, ours: Callable[[list[Kernel]], None], identity: str, theirs: Any) -> None:
        self.ours = ours
        self.identity = identity
        self.theirs = theirs

    def __call__(self, nodes: list[Kernel]) -> list[Kernel]:
        if self.theirs is not None:
            nodes = self.theirs(nodes)
        keep_order_of_writes(nodes)
        self.ours(nodes)
        return nodes

    def uuid(self) -> Any:
        if self.theirs is None:
            return (self.identity,)
        known = self.theirs.uuid() if isinstance(self.theirs, CustomSchedulerPass) else None
        return None if known is None else (self.identity, known)


def calls(kernel: Kernel, operator: Any) -> bool:
    """Whether `kernel` is a call of `operator` that was not lowered to anything else."""
    return getattr(kernel.node, "op_overload", None) is operator


def text_argument(kernel: Kernel) -> str:
    """The first constant argument of an operator call."""
    return str(kernel.node.constant_args[0])


def set_text_argument(kernel: Kernel, text: str) -> None:
    """Replace the first constant argument of an operator call."""
    kernel.node.constant_args = (text, *kernel.node.constant_args[1:])
