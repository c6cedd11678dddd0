# SPDX-License-Identifier: Apache-2.0
"""Faults that leave the connectivity table as it should be: coefficients, caches, masks, random numbers, collectives.
Planted in a rewired graph."""

from __future__ import annotations

import operator
from collections.abc import Callable

from torch import fx

from farskip_compile.passes.graph import comms, ops
from tests.mutation.bench import Fault, Rewired, in_graph
from tests.mutation.models import DECODING, REDUCING, ROUNDED, SCALED, TRAINING
from tests.mutation.wiring_faults import N1, X1


def scaling(graph: Rewired, term: str) -> fx.Node:
    """The multiplication in front of a term's sum."""
    return next(user for user in graph.core(term).users if ops.op_name(user) == "mul")


def multiplier_lost(graph: Rewired) -> None:
    scale = scaling(graph, "a1")
    scale.replace_all_uses_with(graph.core("a1"))
    graph.graph.erase_node(scale)


def multiplier_lost_in_n(graph: Rewired) -> None:
    """The next attention alone reads s without its multiplier."""
    n = graph.value(N1)
    scaled = next(arg for arg in n.args if ops.op_name(arg) == "mul")
    n.replace_input_with(scaled, graph.core("s0"))


def multiplied_twice(graph: Rewired) -> None:
    scale = scaling(graph, "a1")
    users = list(scale.users)
    again = graph.call(operator.mul, (scale, 0.22), behind=scale)
    for user in users:
        user.replace_input_with(scale, again)


def another_multiplier(graph: Rewired) -> None:
    scale = scaling(graph, "a1")
    scale.args = tuple(0.23 if arg == 0.22 else arg for arg in scale.args)


def attention_subtracted_in_n(graph: Rewired) -> None:
    n = graph.value(N1)
    other = graph.call(operator.sub, (graph.value("e"), graph.leaf("a0")), behind=graph.leaf("a0"))
    n.replace_input_with(graph.value("e a0"), other)


def shared_experts_added_to_n_twice(graph: Rewired) -> None:
    n = graph.value(N1)
    graph.redirect("attention.1", graph.plus(n, graph.leaf("s0"), behind=n))


def shared_experts_scaled_like_routed_ones(graph: Rewired) -> None:
    users, shared = list(graph.leaf("s1").users), graph.leaf("s1")
    scaled = graph.call(operator.mul, (shared, 2.5), behind=shared)
    for user in users:
        user.replace_input_with(shared, scaled)


def routed_experts_lose_their_factor(graph: Rewired) -> None:
    scale = next(node for node in graph.calls("mul") if 2.5 in node.args)
    scale.replace_all_uses_with(scale.args[0])
    graph.graph.erase_node(scale)


def rounding_lost(graph: Rewired) -> None:
    """n is not rounded before attention reads it."""
    n = next(arg for _, arg in graph.readers("attention.1"))
    while ops.op_name(n) in ops.CAST_OPS:
        n = n.args[0]
    graph.redirect("attention.1", n)


def norm_of_another_layer(graph: Rewired) -> None:
    (norm, _), (other, _) = graph.readers("attention.1")[0], graph.readers("moe.2")[0]
    swap(norm, other, position(norm, lambda arg: arg in graph.graph.find_nodes(op="placeholder")))


def position(node: fx.Node, holds: Callable[[object], bool]) -> int:
    return next(place for place, arg in enumerate(node.args) if holds(arg))


def swap(one: fx.Node, other: fx.Node, place: int) -> None:
    """Exchange an argument of two calls."""
    mine, theirs = one.args[place], other.args[place]
    assert mine is not theirs
    one.update_arg(place, theirs)
    other.update_arg(place, mine)


def projection_of_another_layer(graph: Rewired) -> None:
    """Two layers' output projections exchanged: the weights of the attentions are all of one shape."""
    swap(graph.core("a1"), graph.core("a2"), 1)


def cache_write_moved(graph: Rewired) -> None:
    """Values are written behind the product that reads them."""
    graph.calls("matmul", "attention.1")[-1].append(graph.calls("index_copy_", "attention.1")[-1])


def cache_write_dropped(graph: Rewired) -> None:
    graph.graph.erase_node(graph.calls("index_copy_")[0])


def load_counted_twice(graph: Rewired) -> None:
    count = graph.calls("add_")[1]
    with graph.graph.inserting_after(count):
        again = graph.graph.node_copy(count)
    again.meta = dict(count.meta)


def caches_of_two_layers_exchanged(graph: Rewired) -> None:
    caches = [graph.calls("index_copy_", f"attention.{layer}")[0].args[0] for layer in (1, 2)]
    swap(*caches, 1)


def keys_and_values_exchanged(graph: Rewired) -> None:
    writes = graph.calls("index_copy_", "attention.1")
    swap(writes[0], writes[1], 3)


def mask_of_another_layer(graph: Rewired) -> None:
    masks = [masking(graph, layer).args[1] for layer in (1, 2)]
    swap(*masks, 1)


def masking(graph: Rewired, layer: int) -> fx.Node:
    (softmax,) = graph.calls("softmax", f"attention.{layer}")
    return softmax.args[0]


def mask_dropped(graph: Rewired) -> None:
    masked = masking(graph, 1)
    masked.replace_all_uses_with(masked.args[0])


def positions_of_another_layer(graph: Rewired) -> None:
    turns = [graph.calls("mul", f"attention.{layer}")[0].args[1] for layer in (1, 2)]
    swap(*turns, 1)


def router_bias_lost(graph: Rewired) -> None:
    choice = graph.calls("topk")[1]
    biased = choice.args[0]
    choice.replace_input_with(biased, biased.args[0])


def dropouts_drawn_in_another_order(graph: Rewired) -> None:
    first, second = (graph.calls("dropout", "moe.0")[-1], graph.calls("dropout", "attention.1")[0])
    for user in [user for user in first.users if list(graph.graph.nodes).index(user) < place(graph, second)]:
        second.append(user)
    second.append(first)


def place(graph: Rewired, node: fx.Node) -> int:
    return list(graph.graph.nodes).index(node)


def dropout_turned_off(graph: Rewired) -> None:
    drop = graph.calls("dropout", "attention.1")[0]
    drop.args = (drop.args[0], drop.args[1], False)


def launches(graph: Rewired, row: str) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if comms.is_collective(node) and reaches(node, graph, row)]


def reaches(launch: fx.Node, graph: Rewired, row: str) -> bool:
    cores = {graph.found.stream.cores[index] for index in graph.found.table.row(row).terms}
    stack, seen = [launch], set()
    while stack:
        node = stack.pop()
        if node in cores:
            return True
        if node not in seen and (node is launch or not comms.is_wait(node)):
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return False


def collective_replaced_by_its_input(graph: Rewired) -> None:
    launch = launches(graph, "moe.1")[-1]
    launch.replace_all_uses_with(launch.args[0])


def another_reduction(graph: Rewired) -> None:
    launch = launches(graph, "moe.1")[-1]
    launch.update_arg(1, "avg")


def another_process_group(graph: Rewired) -> None:
    launch = launches(graph, "moe.1")[-1]
    launch.update_arg(len(launch.args) - 1, "1")


def n_holds_the_shared_experts_unreduced(graph: Rewired) -> None:
    n = graph.value(N1)
    (reduced,) = (arg for arg in n.args if comms.is_wait(arg))
    n.replace_input_with(reduced, reduced.args[0].args[0])


def merged_reduction_adds_a_bias_twice(graph: Rewired) -> None:
    """The bias of the attention is in the sum that is reduced, and is added to what comes out again."""
    bias = next(arg for node in graph.calls("add") for arg in node.args if "bias" in str(getattr(arg, "target", "")))
    n = graph.value(N1)
    users = list(n.users)
    twice = graph.call(operator.add, (n, bias), behind=n)
    for user in users:
        user.replace_input_with(n, twice)


def cache_writes_exchanged(graph: Rewired) -> None:
    """Writes of one layer's two caches stand in another order: nothing reads them in between."""
    first, second = graph.calls("index_copy_", "attention.1")[:2]
    second.append(first)


def keys_come_from_x(graph: Rewired) -> None:
    """The cache is written from x, while the attention reads n."""
    write = graph.calls("index_copy_", "attention.1")[0]
    (norm, _), *_ = graph.readers("attention.1")
    copy = graph.copy(norm, {graph.value(N1): graph.value(X1)})
    projection = next(node for node in graph.calls("linear", "attention.1") if leads(node, write))
    new = graph.copy(projection, {norm: copy})
    turned = next(user for user in projection.users if leads(user, write))
    graph.copy(turned, {projection: new})
    turned.replace_input_with(projection, new)


def leads(node: fx.Node, target: fx.Node) -> bool:
    return node is target or any(
        leads(user, target) for user in node.users if ops.op_name(user) in ("mul", "index_copy_")
    )


FAULTS: list[Fault] = [
    in_graph("coefficients ignored: a residual_scale lost", multiplier_lost, SCALED),
    in_graph("residual_scale lost in n alone", multiplier_lost_in_n, SCALED),
    in_graph("a term scaled twice", multiplied_twice, SCALED),
    in_graph("another residual_scale", another_multiplier, SCALED),
    in_graph("sign: n = x - a + s", attention_subtracted_in_n),
    in_graph("s added to n twice", shared_experts_added_to_n_twice),
    in_graph("shared experts get the routed scaling factor", shared_experts_scaled_like_routed_ones, DECODING),
    in_graph("routed scaling factor lost", routed_experts_lose_their_factor, DECODING),
    in_graph("n is not rounded as x is", rounding_lost, ROUNDED),
    in_graph("norm weights of two layers exchanged", norm_of_another_layer),
    in_graph("projections of two layers exchanged", projection_of_another_layer),
    in_graph("cache write moved behind its reader", cache_write_moved, DECODING),
    in_graph("cache write dropped", cache_write_dropped, DECODING),
    in_graph("a counter counts twice", load_counted_twice, DECODING),
    in_graph("caches of two layers exchanged", caches_of_two_layers_exchanged, DECODING),
    in_graph("keys written where values belong", keys_and_values_exchanged, DECODING),
    in_graph("keys come from x, values from n", keys_come_from_x, DECODING),
    in_graph("cache writes in another order", cache_writes_exchanged, DECODING, same_numbers=True),
    in_graph("mask of another layer", mask_of_another_layer, DECODING),
    in_graph("mask dropped", mask_dropped, DECODING),
    in_graph("positions of another layer", positions_of_another_layer, DECODING),
    in_graph("router bias lost", router_bias_lost, DECODING),
    in_graph("dropouts drawn in another order", dropouts_drawn_in_another_order, TRAINING),
    in_graph("a dropout turned off, in training", dropout_turned_off, TRAINING),
    in_graph("collective replaced by its input", collective_replaced_by_its_input, REDUCING),
    in_graph("reduce_op changed", another_reduction, REDUCING),
    in_graph("process group of a reduction changed", another_process_group, REDUCING, same_numbers=True),
    in_graph("n holds unreduced shared experts", n_holds_the_shared_experts_unreduced, REDUCING),
    in_graph("merge_reductions adds a bias twice", merged_reduction_adds_a_bias_twice, REDUCING, merge=True),
]
