# SPDX-License-Identifier: Apache-2.0
"""Faults in the order of a scheduled graph, forward and backward, and in the passes that make it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from farskip_compile._compat import inductor
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.schedule import collectives, from_graph, program
from farskip_compile.passes.schedule import graph as schedule_graph
from farskip_compile.records import announcement as announce
from tests.mutation.bench import Fault
from tests.mutation.order_bench import Scheduled, in_schedule, in_scheduler

c10d = torch.ops._c10d_functional


def wait_before_launch(graph: Scheduled) -> None:
    wait = next(wait for wait in graph.waits() if wait not in graph.pinned())
    wait.args[0].prepend(wait)


def wait_dropped(graph: Scheduled) -> None:
    launch = graph.launches()[-1]
    wait = graph.wait_of(launch)
    wait.replace_all_uses_with(launch)
    graph.graph.erase_node(wait)


def wait_moved_onto_another_launch(graph: Scheduled) -> None:
    one, two = alike(graph)
    graph.wait_of(two).replace_input_with(two, one)


def waits_swapped(graph: Scheduled) -> None:
    one, two = alike(graph)
    first, second = graph.wait_of(one), graph.wait_of(two)
    first.replace_input_with(one, two)
    second.replace_input_with(two, one)


def alike(graph: Scheduled) -> tuple[fx.Node, fx.Node]:
    """Two launches whose results have the same shape."""
    launches = graph.launches()
    for index, one in enumerate(launches):
        for two in launches[index + 1 :]:
            if ops.same_shape(ops.tensor(one), ops.tensor(two)) and ops.tensor(one).dtype == ops.tensor(two).dtype:
                return one, two
    raise AssertionError("no two launches are alike")


def launches_swapped(graph: Scheduled) -> None:
    one, two = graph.launches()[:2]
    one.prepend(two.args[0])
    one.prepend(two)


def process_group_changed(graph: Scheduled) -> None:
    comms.set_process_group(graph.launches()[-1], "1")


def replaced_by_its_input(graph: Scheduled) -> None:
    launch = graph.launches()[-1]
    wait = graph.wait_of(launch)
    wait.replace_all_uses_with(launch.args[0])
    graph.graph.erase_node(wait)
    graph.graph.erase_node(launch)


def reduction_changed(graph: Scheduled) -> None:
    graph.launches()[0].update_arg(1, "avg")


def launched_twice(graph: Scheduled) -> None:
    launch = graph.launches()[-1]
    with graph.graph.inserting_after(launch):
        graph.graph.node_copy(launch)


def moved(*names: str, behind: str = "", before: str = "") -> Callable[[Scheduled], None]:
    def fault(graph: Scheduled) -> None:
        for name in reversed(names) if behind else names:
            (graph.named[behind].append if behind else graph.named[before].prepend)(graph.named[name])

    return fault


def erased(name: str) -> Callable[[Scheduled], None]:
    return lambda graph: graph.graph.erase_node(graph.named[name])


def unpinned(graph: Scheduled) -> None:
    node = graph.pinned()[0]
    _, _, target, args, kwargs = inductor.pinned(node)
    with graph.graph.inserting_before(node):
        bare = graph.graph.call_function(target, args, kwargs)
    bare.meta = dict(node.meta)
    node.replace_all_uses_with(bare)
    name, body = node.name, node.args[1]
    graph.graph.erase_node(node)
    graph.graph.erase_node(body)
    bare.name = name


def pinned_behind_less(graph: Scheduled) -> None:
    node = next(node for node in graph.pinned() if len(node.args[0]) > 1)
    node.update_arg(0, node.args[0][:1])


def pinned_behind_something_else(graph: Scheduled) -> None:
    node = graph.pinned()[-1]
    first = next(node for node in graph.graph.nodes if node.op == "call_function" and ops.tensor(node) is not None)
    node.update_arg(0, (first, *node.args[0][1:]))


def an_output_lost(graph: Scheduled) -> None:
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    values = list(output.args[0])
    place = next(i for i, value in enumerate(values) if isinstance(value, fx.Node))
    values[place] = next(value for value in values[place + 1 :] if isinstance(value, fx.Node))
    output.args = (tuple(values),)


def gradient_counted_twice(graph: Scheduled) -> None:
    total = next(
        node
        for node in graph.graph.nodes
        if ops.op_name(node) == "add"
        and all(isinstance(a, fx.Node) for a in node.args)
        and node.args[0] != node.args[1]
    )
    total.args = (total.args[0], total.args[0])


def announcement_lost(graph: Scheduled) -> None:
    graph.graph.erase_node(graph.announcement())


def announced_late(graph: Scheduled) -> None:
    graph.launches()[0].append(graph.announcement())


def announces_one_launch_less(graph: Scheduled) -> None:
    node = graph.announcement()
    announced = announce.Announcement.from_text(node.args[0])
    next(iter(announced.report.orders.values())).pop()
    node.update_arg(0, announced.to_text())


FAULTS: list[Fault] = [
    in_schedule("wait before launch", "forward graph", wait_before_launch),
    in_schedule("wait dropped", "forward graph", wait_dropped),
    in_schedule("wait dropped, in backward only", "backward graph", wait_dropped),
    in_schedule("wait moved onto another launch", "forward graph", wait_moved_onto_another_launch),
    in_schedule("two waits swapped", "reductions", waits_swapped),
    in_schedule("launch order changed", "reductions", launches_swapped),
    in_schedule("process group of one launch changed", "backward graph", process_group_changed),
    in_schedule("all-to-all replaced by its input", "forward graph", replaced_by_its_input),
    in_schedule("reduce_op of one launch changed", "reductions", reduction_changed),
    in_schedule("launched twice", "forward graph", launched_twice),
    in_schedule("random numbers drawn in another order", "side effects", moved("more", before="noise")),
    in_schedule("cache write behind its reader", "side effects", moved("write", behind="new")),
    in_schedule("cache write before the reader of the old", "side effects", moved("write", before="old")),
    in_schedule("cache write lost", "side effects", erased("write")),
    in_schedule("buffer overwritten in flight", "side effects", moved("over", behind="one")),
    in_schedule("buffer reused in flight", "side effects", moved("index", "rows", "put", behind="two")),
    in_schedule("pinned wait unpinned", "forward graph", unpinned),
    in_schedule("wait pinned behind a part of what hides it", "reductions", pinned_behind_less),
    in_schedule("wait pinned behind something else", "backward graph", pinned_behind_something_else),
    in_schedule("an output lost", "forward graph", an_output_lost),
    in_schedule("a gradient counted twice, in backward only", "backward graph", gradient_counted_twice),
    in_schedule("announcement lost", "forward graph", announcement_lost),
    in_schedule("announcement behind a launch", "forward graph", announced_late),
    in_schedule("announcement of another order", "backward graph", announces_one_launch_less),
    in_scheduler(
        "writes don't wait for readers",
        from_graph._order_memory,
        "needs[i].update(reader for reader in readers.pop(place, ()) if reader != i)",
        "readers.pop(place, ())",
        "read, then written",
    ),
    in_scheduler(
        "a wait reads nothing that is in flight",
        from_graph._order_memory,
        "[*node.all_input_nodes, *in_flight.get(launch_of.get(node, node), ())]",
        "node.all_input_nodes",
        "sent, then written",
    ),
    in_scheduler(
        "what Inductor may write counts as read only",
        from_graph._order_in_place,
        "    landed: dict",
        "    return\n    landed: dict",
        "sent, then put",
    ),
    in_scheduler(
        "side effects have no order",
        from_graph._order_side_effects,
        "    last: int | None = None\n",
        "    return\n",
        "drawn twice",
    ),
    in_scheduler(
        "launches of a group have no order", program.needs_of, "if task.channel in previous:", "if False:", "two urgent"
    ),
    in_scheduler(
        "waits of different collectives collapse",
        collectives.normalize_collectives,
        "first.setdefault(result, node)",
        "first.setdefault(ops.op_name(result), node)",
        "reductions",
    ),
    in_scheduler(
        "last pin forgotten", schedule_graph.pins, "products[first:last]", "products[first : last - 1]", "forward graph"
    ),
    in_scheduler(
        "order announced backwards", announce.collective_orders, "[]).append(", "[]).insert(0, ", "reductions"
    ),
]
