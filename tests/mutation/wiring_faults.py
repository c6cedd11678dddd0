# SPDX-License-Identifier: Apache-2.0
"""Faults in what sub-blocks read and what is summed, planted in a rewired graph. `tests.mutation.value_faults` has
those that leave the connectivity table as it should be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from tests.mutation.bench import Fault, Rewired, in_graph
from tests.mutation.models import MIDDLE, RETURNS, TRAINING

X1, N1 = "e a0 r0 s0", "e a0 s0"
X2, N2 = X1 + " a1 r1 s1", X1 + " a1 s1"


def with_attention(graph: Rewired, layer: int) -> fx.Node:
    """x + a of a layer, as its MoE reads it in the model as written."""
    a = graph.leaf(f"a{layer}")
    return graph.plus(graph.value(("e", X1, X2)[layer]), a, behind=a)


def moe_reads_the_attention(layer: int) -> Callable[[Rewired], None]:
    return lambda graph: graph.redirect(f"moe.{layer}", with_attention(graph, layer))


def all_moes_read_the_attention(graph: Rewired) -> None:
    for layer in range(3):
        moe_reads_the_attention(layer)(graph)


def attention_reads_the_full_stream(graph: Rewired) -> None:
    graph.redirect("attention.1", graph.value(X1))


def n_misses_the_shared_experts(graph: Rewired) -> None:
    graph.redirect("attention.1", graph.plus(graph.value("e"), graph.leaf("a0"), behind=graph.leaf("a0")))


def n_holds_the_routed_experts_instead_of_the_shared(graph: Rewired) -> None:
    graph.redirect("attention.1", graph.plus(graph.value("e a0"), graph.leaf("r0"), behind=graph.leaf("r0")))


def n_holds_the_routed_experts_too(graph: Rewired) -> None:
    n = graph.value(N1)
    graph.redirect("attention.1", graph.plus(n, graph.leaf("r0"), behind=n))


def n_misses_the_attention(graph: Rewired) -> None:
    s = graph.leaf("s0")
    graph.redirect("attention.1", graph.plus(graph.value("e"), s, behind=s))


def streams_swapped(*layers: int) -> Callable[[Rewired], None]:
    def fault(graph: Rewired) -> None:
        for layer in layers:
            x, n = (graph.value(terms) for terms in ((X1, N1), (X2, N2))[layer - 1])
            graph.redirect(f"attention.{layer}", x)
            graph.redirect(f"moe.{layer}", n)

    return fault


def attention_reads_the_layer_before(graph: Rewired) -> None:
    graph.redirect("attention.2", graph.value(N1))


def moe_reads_the_layer_before(graph: Rewired) -> None:
    graph.redirect("moe.2", graph.value(X1))


def two_attentions_swapped(graph: Rewired) -> None:
    one, two = graph.readers("attention.1"), graph.readers("attention.0")
    for (node, old), (_, other) in zip(one, two, strict=True):
        node.replace_input_with(old, other)


def n_of_the_end(graph: Rewired) -> fx.Node:
    """The final hidden state without its routed experts."""
    a = graph.plus(graph.value(X2), graph.leaf("a2"), behind=graph.leaf("a2"))
    return graph.plus(a, graph.leaf("s2"), behind=graph.leaf("s2"))


def final_norm_reads_n(graph: Rewired) -> None:
    n = n_of_the_end(graph)
    for user in [user for user in graph.root.users if user.op != "output"]:
        user.replace_input_with(graph.root, n)
    graph.graph.eliminate_dead_code()


def what_is_returned_misses_the_routed_experts(graph: Rewired) -> None:
    n = n_of_the_end(graph)
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    output.replace_input_with(graph.root, n)


def a_probe_reads_n(graph: Rewired) -> None:
    (probe,) = graph.calls("tanh")
    probe.replace_input_with(graph.value(X1), graph.value(N1))


def a_term_is_added_twice(graph: Rewired) -> None:
    users = list(graph.root.users)
    total = graph.plus(graph.root, graph.leaf("s1"), behind=graph.root)
    for user in users:
        user.replace_input_with(graph.root, total)


def a_foreign_term_is_added(graph: Rewired) -> None:
    users = list(graph.root.users)
    foreign = graph.call(torch.tanh, (graph.value("e"),), behind=graph.root)
    total = graph.plus(graph.root, foreign, behind=foreign)
    for user in users:
        user.replace_input_with(graph.root, total)


def lost(term: str) -> Callable[[Rewired], None]:
    """Bypass the sum that adds the term to the main chain."""

    def fault(graph: Rewired) -> None:
        leaf, stream = graph.leaf(term), graph.found.stream
        parent = stream.parents[leaf]
        (rest,) = (arg for arg in stream.below[parent] if arg is not leaf)
        parent.replace_all_uses_with(rest)

    return fault


def a_term_is_replaced_by_another(graph: Rewired) -> None:
    parent = graph.found.stream.parents[graph.leaf("a1")]
    parent.replace_input_with(graph.leaf("a1"), graph.leaf("a0"))


def one_branch_reads_another_stream(first_step: Callable[[Rewired, fx.Node], fx.Node]) -> Callable[[Rewired], None]:
    """One edge of a row, not all: a norm of its own, on x + a, for a part of the MoE."""

    def fault(graph: Rewired) -> None:
        (norm, _), *_ = graph.readers("moe.1")
        branch = first_step(graph, norm)
        copy = graph.copy(norm, {graph.value(X1): with_attention(graph, 1)})
        branch.replace_input_with(norm, copy)

    return fault


def router(graph: Rewired, norm: fx.Node) -> fx.Node:
    return next(user for user in norm.users if user in graph.calls("linear") and leads_to(user, "softmax"))


def shared_experts(graph: Rewired, norm: fx.Node) -> fx.Node:
    return next(user for user in norm.users if user in graph.calls("linear") and leads_to(user, "silu"))


def leads_to(node: fx.Node, name: str) -> bool:
    return any(name in user.name or ("flatten" in user.name and leads_to(user, name)) for user in node.users)


def the_stack_is_lost(graph: Rewired) -> None:
    mean = graph.call(torch.tanh, (graph.value("e"),), behind=graph.root)
    for user in [user for user in graph.root.users if user is not mean]:
        user.replace_input_with(graph.root, mean)
    graph.graph.eliminate_dead_code()


def in_place_on_a_shared_residual(graph: Rewired) -> None:
    """x + a becomes x += a, while the MoE reads x behind it."""
    a = graph.leaf("a1")
    (total,) = (user for user in a.users if graph.value(X1) in user.all_input_nodes)
    with graph.graph.inserting_before(total):
        write = graph.graph.call_method("add_", (graph.value(X1), a))
    write.meta = dict(total.meta)
    write.meta["example_value"] = graph.value(X1).meta["example_value"]
    total.replace_all_uses_with(write)
    graph.graph.erase_node(total)


FAULTS: list[Fault] = [
    in_graph("MoE reads x + a, attentions are right", all_moes_read_the_attention),
    in_graph("MoE reads x + a in one layer", moe_reads_the_attention(1)),
    in_graph("MoE reads x + a in the last layer", moe_reads_the_attention(2)),
    in_graph("MoE reads x + a, in training", moe_reads_the_attention(1), TRAINING),
    in_graph("attention reads x", attention_reads_the_full_stream),
    in_graph("attention reads x, in training", attention_reads_the_full_stream, TRAINING),
    in_graph("n misses s", n_misses_the_shared_experts),
    in_graph("n misses a", n_misses_the_attention),
    in_graph("n includes r", n_holds_the_routed_experts_too),
    in_graph("n includes r in the place of s", n_holds_the_routed_experts_instead_of_the_shared),
    in_graph("streams swapped", streams_swapped(1, 2)),
    in_graph("streams swapped in the last layer", streams_swapped(2)),
    in_graph("attention reads n of the layer before", attention_reads_the_layer_before),
    in_graph("MoE reads x of the layer before", moe_reads_the_layer_before),
    in_graph("two attentions read each other's stream", two_attentions_swapped),
    in_graph("a row outside of the range changes", lambda g: g.redirect("moe.1", g.value(X1)), layers=(2, 2)),
    in_graph("final norm reads n", final_norm_reads_n),
    in_graph("final norm reads n, x is returned", final_norm_reads_n, RETURNS),
    in_graph("n is returned", what_is_returned_misses_the_routed_experts, RETURNS),
    in_graph("reads changed outside the region", a_probe_reads_n, MIDDLE),
    in_graph("a term added twice", a_term_is_added_twice),
    in_graph("a term lost", lost("a1")),
    in_graph("a term of the last layer lost", lost("a2")),
    in_graph("a term replaced by another", a_term_is_replaced_by_another),
    in_graph("a foreign term added", a_foreign_term_is_added),
    in_graph("the router alone reads another stream", one_branch_reads_another_stream(router)),
    in_graph("shared experts alone read another stream", one_branch_reads_another_stream(shared_experts)),
    in_graph("the residual stack is lost", the_stack_is_lost),
    in_graph("in-place add on a shared residual", in_place_on_a_shared_residual),
]
