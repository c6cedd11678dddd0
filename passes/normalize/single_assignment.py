# SPDX-License-Identifier: Apache-2.0
"""Give every mutated value a new name, so that dataflow can be read from the edges.

In:    a Dynamo graph. In-place ops have no users there: later nodes go on reading the *old* node, so the written
       value looks dead and the reader seems to see the value before the write.
Out:   the same function. A write to an intermediate is replaced by its out-of-place form where one exists; where
       none does, later readers read the result of the write, or a mark of it (`definitions`). Writes to graph inputs
       (caches, counters) stay as they are, in order.
Never: moves a node; touches a graph input, or memory that is read by its layout (`as_strided`), which no new value
       need have; changes a dtype.

Algorithm, one walk in graph order:
1. Rename the arguments of each node to the newest version of what they name.
2. At a write to an intermediate: build the out-of-place form (cast to the old dtype, as the in-place form does), or
   mark what the memory holds after it.
3. Views of the same memory that are read later: make them anew from the new value if they hold the same elements in the
   same order; if not, the write stays in place, and `mutation_edges` order its readers after it.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx

from farskip_compile._compat import OpOverload, same_dim
from farskip_compile._compat.tensors import is_of_a_vmap, overload_name
from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.graph.walk import fresh_like
from farskip_compile.passes.normalize.definitions import DEFINED, define
from farskip_compile.passes.normalize.modes import Autocast, Modes
from farskip_compile.passes.normalize.puts import as_indices, put_function


def assign_once(graph: fx.Graph) -> int:
    """Bring `graph` to single-assignment form; returns how many writes were replaced."""
    if not (writers := effects.writers(graph.nodes)):
        return 0
    order = {node: index for index, node in enumerate(graph.nodes)}
    last_use = {node: max((order[user] for user in node.users), default=-1) for node in graph.nodes}
    kept = {None, *(effects.storage(n) for n in graph.nodes if n.op in ("placeholder", "get_attr"))}
    kept.update(effects.storage(n) for n in graph.nodes if ops.op_name(n).startswith("as_strided"))
    names: dict[fx.Node, fx.Node] = {}
    same_memory: dict[int | None, list[fx.Node]] = defaultdict(list)
    replaced: list[fx.Node] = []
    modes = Modes()
    for node in list(graph.nodes):
        modes.enter(node, writes=node in writers)
        # 1
        for arg in node.all_input_nodes:
            if arg in names:
                node.replace_input_with(arg, names[arg])
        same_memory[effects.storage(node)].append(node)
        # 2, 3
        for base in effects.mutated_args(node):
            written = effects.storage(base)
            if written in kept:
                continue
            later = [n for n in same_memory[written] if n is not node and last_use.get(n, -1) > order[node]]
            if _replace_write(graph, node, base, later, names, modes):
                replaced.append(node)
            for old in (base, *later):
                modes.stand_for(names.get(old, old), old)
    for node in reversed(replaced):
        graph.erase_node(node)
    return len(replaced)


def mutation_edges(graph: fx.Graph) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """For each reader of memory that was written in place, the last write before it.

    These are the dependences that the edges of the graph do not show: of cache reads on cache writes, and on the writes
    that `assign_once` had to leave. A value that was made after the write, such as a view, shows it by itself.
    """
    written = effects.writers(graph.nodes)
    last_write: dict[int | None, fx.Node] = {}
    edges: dict[fx.Node, tuple[fx.Node, ...]] = {}
    if not written:
        return edges
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        pairs = [(last_write.get(effects.storage(arg)), arg) for arg in node.all_input_nodes] if last_write else []
        writes = [write for write, arg in pairs if write is not None and (order[write] > order[arg] or _begins(arg))]
        if writes:
            edges[node] = tuple(dict.fromkeys(writes))
        for base in written.get(node, ()):
            memory = effects.storage(base)
            if memory is not None and memory not in node.meta.get(DEFINED, ()):
                last_write[memory] = node
    return edges


def _begins(arg: fx.Node) -> bool:
    """Return whether `arg` names memory from outside of the graph: where it stands says nothing about writes."""
    return arg.op in ("placeholder", "get_attr")


def _replace_write(
    graph: fx.Graph, write: fx.Node, base: fx.Node, later: list[fx.Node], names: dict[fx.Node, fx.Node], modes: Modes
) -> bool:
    """Replace `write` to `base` and enter the new names of everything in `later`; False if it must stay in place."""
    others = [node for node in later if names.get(node, node) is not base]
    same = [node for node in later if node not in others]
    value = ops.tensor(base)
    assert value is not None
    connected = modes.are_one_in_gradients(base, later)
    functional = _out_of_place(write, base, modes.autocast(value.device.type)) if connected else None
    anew = connected and all(_same_elements(ops.tensor(node), value) for node in others)
    if functional is None or not anew:
        new = _result_in_place(graph, write, base)
        if anew and new is not write:
            write.meta[DEFINED] = (*write.meta.get(DEFINED, ()), effects.storage(base))
            _views_anew(graph, new, value, others, names)
        names.update(dict.fromkeys([base, *same], new))
        return False
    with graph.inserting_before(write):
        new = _cast(graph, functional(graph), value.dtype)
        # the new name stands for the old memory: the next write to it must find its views, and readers the write
        fresh = fresh_like(value)
        new.meta |= {"example_value": fresh, "farskip_storage": effects.storage(base)}
    _views_anew(graph, new, fresh, others, names)
    names.update(dict.fromkeys([base, write, *same], new))
    return True


def _views_anew(
    graph: fx.Graph, new: fx.Node, value: torch.Tensor, views: Sequence[fx.Node], names: dict[fx.Node, fx.Node]
) -> None:
    """Step 3: `views` of the memory that `new` stands for, made of it."""
    place = new
    for node in views:
        with graph.inserting_after(place):
            view = graph.call_method("view_as", (new, names.get(node, node)))
        shape = ops.tensor(node).shape  # type: ignore[union-attr]
        memory = new.meta["farskip_storage"]
        view.meta = {**node.meta, "example_value": value.view(shape), "farskip_storage": memory}
        names[node] = place = view


def _result_in_place(graph: fx.Graph, write: fx.Node, base: fx.Node) -> fx.Node:
    """The name of `base` after a write that stays."""
    if effects.storage(write) == effects.storage(base):
        return write
    return define(graph, write, base)  # it returns nothing, or something else


def _cast(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """`node`, cast if its dtype is another one."""
    value = ops.tensor(node)
    if value is None or value.dtype == dtype:
        return node
    cast = graph.call_method("to", (node, dtype))
    cast.meta = dict(node.meta)
    return cast


def _out_of_place(write: fx.Node, base: fx.Node, autocast: Autocast) -> Callable[[fx.Graph], fx.Node] | None:
    """A builder of the out-of-place form of `write` to `base`, or None if there is none, also because of `autocast`."""
    name = ops.op_name(write)
    if name == "copy_":
        return _copy_source(write)
    if name == "setitem":
        return _put_at_indices(write, base)
    if effects.is_random(write) or "out" in write.kwargs or len(effects.mutated_args(write)) > 1:
        return None
    args, kwargs = list(write.args), dict(write.kwargs)
    target: Any
    if effects.is_inplace_call(write):
        target, position = write.target, effects.inplace_position(write.target)
        if "inplace" in kwargs or position is None:
            kwargs["inplace"] = False
        else:
            args[position] = False
    else:
        target = _functional_target(write, name)
    value = _try(write.op, target, args, kwargs, base, None) if target is not None else None
    if value is None:
        return None
    if autocast is not None:
        cast = _try(write.op, target, args, kwargs, base, autocast)
        if cast is None or cast.dtype != value.dtype:
            return None

    def build(graph: fx.Graph) -> fx.Node:
        new = graph.create_node(write.op, target, tuple(args), kwargs)
        new.meta = {**write.meta, "example_value": value}
        return new

    return build


def _functional_target(write: fx.Node, name: str) -> Any:
    """What to call instead of an operator that is in place by its name; None if there is nothing."""
    plain = name.removesuffix("_")
    if isinstance(write.target, OpOverload):
        packet = getattr(torch.ops.aten, name.rstrip("_"), None)
        return getattr(packet, overload_name(write.target), None)
    if write.op == "call_method":
        return plain if hasattr(torch.Tensor, plain) else None
    if getattr(write.target, "__module__", "") == "_operator":
        if name == "setitem":
            return None
        plain = name.removeprefix("i")
        return getattr(operator, plain, getattr(operator, f"{plain}_", None))
    return getattr(torch, plain, None) or getattr(torch.nn.functional, name.rstrip("_"), None)


def _copy_source(write: fx.Node) -> Callable[[fx.Graph], fx.Node] | None:
    """`a.copy_(b)`: later readers of `a` read a copy of `b`, if it needs no broadcast.

    Not `b` itself: a write to either that has no out-of-place form would then change both.
    """
    base, source = write.args[0], write.args[1]
    if not isinstance(source, fx.Node) or not isinstance(base, fx.Node):
        return None
    value, new = ops.tensor(base), ops.tensor(source)
    if value is None or new is None or not ops.same_shape(value, new) or value.device != new.device:
        return None
    layout = {}
    if not all(map(same_dim, value.stride(), new.stride())):
        if not value.is_contiguous():
            return None
        layout = {"memory_format": torch.contiguous_format}

    def build(graph: fx.Graph) -> fx.Node:
        copy = graph.call_method("to", (source, value.dtype), {"copy": True, **layout})
        copy.meta = {**write.meta, "example_value": value}
        return copy

    return build


def _put_at_indices(write: fx.Node, base: fx.Node) -> Callable[[fx.Graph], fx.Node] | None:
    """`a[i] = b` with tensors of indices, or a mask: what the routed experts of a loop do."""
    target, key, value = write.args
    indices = as_indices(key)
    if indices is None or not isinstance(value, fx.Node) or (found := ops.tensor(value)) is None:
        return None
    old = ops.tensor(base)
    if old is None or found.dtype != old.dtype or is_of_a_vmap(old):
        return None

    def build(graph: fx.Graph) -> fx.Node:
        new = graph.call_function(put_function(indices), (target, indices, value))
        new.meta = {**write.meta, "example_value": fresh_like(old)}
        return new

    return build


def _try(
    kind: str, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], base: fx.Node, autocast: Autocast
) -> torch.Tensor | None:
    """What the out-of-place form gives on fake values: its type may be another one, of a comparison for example.

    None if it can't be told, or is no tensor of the shape of `base`.
    """
    given, named = fx.map_arg((tuple(args), dict(kwargs)), _without_data)
    old = _without_data(base)
    assert isinstance(old, torch.Tensor)
    try:
        device, dtype = autocast or (old.device.type, None)
        with (
            getattr(old, "fake_mode", None) or nullcontext(),
            torch.autocast(device, dtype, enabled=autocast is not None),
        ):
            result = (
                getattr(given[0], target)(*given[1:], **named) if kind == "call_method" else target(*given, **named)
            )
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None
    if not isinstance(result, torch.Tensor) or not ops.same_shape(result, old):
        return None
    return fresh_like(old, dtype=result.dtype)


def _without_data(node: fx.Node) -> Any:
    """The fake value of `node`; of a tensor that is none, one without data."""
    value = ops.fake(node)
    if isinstance(value, torch.Tensor) and getattr(value, "fake_mode", None) is None:
        return torch.empty_like(value, device="meta")
    return value


def _same_elements(view: torch.Tensor | None, base: torch.Tensor) -> bool:
    """Both hold the same elements in the same order, so either is a `view_as` of the other."""
    if view is None or not view.is_contiguous() or not base.is_contiguous() or view.dtype != base.dtype:
        return False
    return same_dim(view.numel(), base.numel()) and same_dim(view.storage_offset(), base.storage_offset())
