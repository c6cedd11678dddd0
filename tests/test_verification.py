"""The verifier must see every defect: each is planted in a correctly rewired graph, alone."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.connectivity import Request, ask
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.rewire import rewire
from farskip_compile.passes.table import ResidualTable
from farskip_compile.passes.termset import TermSet
from farskip_compile.verification import Snapshot, snapshot, verify
from tests.graphs import Layer, MoE, Network, Stack, capture, dynamo, ids, networks


@dataclass
class Rewired:
    """A graph rewired to full FarSkip, and what is needed to break it: nodes by term and by value."""

    module: fx.GraphModule
    wanted: ResidualTable
    before: Snapshot
    found: ResidualTable

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    def leaf(self, term: str) -> fx.Node:
        return self.found.handles.leaf(self.found.term(term).index)

    def value(self, terms: str) -> fx.Node:
        """The residual value that holds exactly these terms."""
        wanted = TermSet.of(self.found.term(name).index for name in terms.split())
        return next(node for node, held in self.found.handles.stream.values.items() if held == wanted)

    def readers(self, row: str) -> list[tuple[fx.Node, fx.Node]]:
        """(node, residual value) for each edge through which `row` reads."""
        values = self.found.handles.stream.values
        owned = {node for i in self.found.row(row).terms for node in self.found.handles.regions[i].owned}
        return [(node, arg) for node in self.graph.nodes if node in owned for arg in node.args if arg in values]

    def redirect(self, row: str, value: fx.Node) -> None:
        """Let `row` read `value` instead."""
        edges = self.readers(row)
        assert edges
        assert all(old is not value for _, old in edges)
        for node, old in edges:
            node.replace_input_with(old, value)

    def plus(self, left: fx.Node, right: fx.Node, behind: fx.Node) -> fx.Node:
        with self.graph.inserting_after(behind):
            total = self.graph.call_function(operator.add, (left, right))
        total.meta["example_value"] = left.meta["example_value"].clone()
        return total

    def verify(self) -> None:
        sort(self.graph)
        self.graph.lint()
        verify(self.module, self.wanted, self.before)


def sort(graph: fx.Graph) -> None:
    """Stable topological order, so that a defect is a wrong graph and not an invalid one."""
    placed: set[fx.Node] = set()
    waiting = list(graph.nodes)
    last = graph._root
    while waiting:
        node = next(node for node in waiting if all(arg in placed for arg in node.all_input_nodes))
        waiting.remove(node)
        placed.add(node)
        last.append(node)
        last = node


class Returns(Stack):
    """Returns the final hidden state beside the logits."""

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)), x


def prepare(wish="full", layers=None, kind: type[Stack] = Stack) -> Rewired:
    made = []

    def edit(module: fx.GraphModule) -> None:
        normalize(module)
        table = read_table(module.graph)
        request = ask(table, wish, layers)
        wanted, before = request.wanted(table), snapshot(table)
        rewire(module, table, request)
        made.append(Rewired(module, wanted, before, verify(module, wanted, before)))

    dynamo(kind(lambda: Layer(MoE()), layers=3), ids(), edit=edit)
    return made[0]


X1, N1 = "e a0 r0 s0", "e a0 s0"
X2, N2 = X1 + " a1 r1 s1", X1 + " a1 s1"


def moe_reads_the_attention(graph: Rewired) -> None:
    value = graph.value(X1)
    graph.redirect("moe.1", graph.plus(value, graph.leaf("a1"), behind=graph.leaf("a1")))


def attention_reads_the_full_stream(graph: Rewired) -> None:
    graph.redirect("attention.1", graph.value(X1))


def n_misses_the_shared_experts(graph: Rewired) -> None:
    graph.redirect("attention.1", graph.plus(graph.value("e"), graph.leaf("a0"), behind=graph.leaf("a0")))


def n_holds_the_routed_experts_instead_of_the_shared(graph: Rewired) -> None:
    early = graph.value("e a0")
    graph.redirect("attention.1", graph.plus(early, graph.leaf("r0"), behind=graph.leaf("r0")))


def n_holds_the_routed_experts_too(graph: Rewired) -> None:
    n = graph.value(N1)
    graph.redirect("attention.1", graph.plus(n, graph.leaf("r0"), behind=n))


def streams_swapped(graph: Rewired) -> None:
    x, n = graph.value(X1), graph.value(N1)
    graph.redirect("attention.1", x)
    graph.redirect("moe.1", n)


def attention_reads_the_layer_before(graph: Rewired) -> None:
    graph.redirect("attention.2", graph.value(N1))


def moe_reads_the_layer_before(graph: Rewired) -> None:
    graph.redirect("moe.2", graph.value(X1))


def two_attentions_swapped(graph: Rewired) -> None:
    one, two = graph.readers("attention.1"), graph.readers("attention.0")
    for (node, old), (_, other) in zip(one, two, strict=True):
        node.replace_input_with(old, other)


def final_norm_reads_n(graph: Rewired) -> None:
    root = graph.found.handles.stream.root
    n = graph.plus(graph.value(N2), graph.leaf("a2"), behind=graph.leaf("s2"))
    n = graph.plus(n, graph.leaf("s2"), behind=n)
    for user in [user for user in root.users if user is not n and user.op != "output"]:
        user.replace_input_with(root, n)
    graph.graph.eliminate_dead_code()


def a_term_is_added_twice(graph: Rewired) -> None:
    root = graph.found.handles.stream.root
    users = list(root.users)
    total = graph.plus(root, graph.leaf("s1"), behind=root)
    for user in users:
        user.replace_input_with(root, total)


def a_foreign_term_is_added(graph: Rewired) -> None:
    root = graph.found.handles.stream.root
    users = list(root.users)
    with graph.graph.inserting_after(root):
        foreign = graph.graph.call_function(torch.tanh, (graph.value("e"),))
    foreign.meta["example_value"] = root.meta["example_value"].clone()
    total = graph.plus(root, foreign, behind=foreign)
    for user in users:
        user.replace_input_with(root, total)


def lose(term: str) -> Callable[[Rewired], None]:
    def defect(graph: Rewired) -> None:
        """Bypass the sum that adds the term to the main chain."""
        leaf, stream = graph.leaf(term), graph.found.handles.stream
        parent = stream.parents[leaf]
        (rest,) = (arg for arg in stream.below[parent] if arg is not leaf)
        parent.replace_all_uses_with(rest)

    return defect


def a_term_is_replaced_by_another(graph: Rewired) -> None:
    parent = graph.found.handles.stream.parents[graph.leaf("a1")]
    parent.replace_input_with(graph.leaf("a1"), graph.leaf("a0"))


def the_router_alone_reads_another_stream(graph: Rewired) -> None:
    """One edge of a row, not all: a norm of its own, on n, for the router."""
    (norm, _), *_ = graph.readers("moe.1")
    router = next(user for user in norm.users if "linear" in user.name)
    with graph.graph.inserting_after(norm):
        copy = graph.graph.node_copy(norm)
    copy.meta["example_value"] = norm.meta["example_value"].clone()
    copy.replace_input_with(graph.value(X1), graph.value(N1))
    copy.replace_input_with(graph.value(N1), graph.plus(graph.value(X1), graph.leaf("a1"), behind=graph.leaf("a1")))
    router.replace_input_with(norm, copy)


DEFECTS = [
    moe_reads_the_attention,
    attention_reads_the_full_stream,
    n_misses_the_shared_experts,
    n_holds_the_routed_experts_instead_of_the_shared,
    n_holds_the_routed_experts_too,
    streams_swapped,
    attention_reads_the_layer_before,
    moe_reads_the_layer_before,
    two_attentions_swapped,
    final_norm_reads_n,
    a_term_is_added_twice,
    a_foreign_term_is_added,
    lose("a1"),
    lose("a2"),
    a_term_is_replaced_by_another,
    the_router_alone_reads_another_stream,
]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__qualname__)
def test_each_defect_is_seen(defect):
    graph = prepare()
    graph.verify()
    defect(graph)
    with pytest.raises(VerificationError):
        graph.verify()


def test_final_norm_reads_n_while_the_full_stream_is_returned_too():
    graph = prepare(kind=Returns)
    root = graph.found.handles.stream.root
    final_norm_reads_n(graph)
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    assert root in output.all_input_nodes
    with pytest.raises(VerificationError):
        graph.verify()


def test_the_message_names_the_row_and_the_terms():
    graph = prepare()
    attention_reads_the_full_stream(graph)
    with pytest.raises(VerificationError, match=r"attention\.1 reads \['r0'\]") as caught:
        graph.verify()
    assert caught.value.where.layer == 1


def test_rows_outside_of_the_range_are_checked():
    graph = prepare(layers=(2, 2))
    graph.redirect("moe.1", graph.value(X1))
    with pytest.raises(VerificationError, match=r"moe\.1"):
        graph.verify()


def test_a_table_that_was_not_reached_is_refused():
    """Verifying an edit that did nothing, or too much."""
    graph = prepare("attention")
    for wish in ("full", "mlp"):
        table = graph.found
        request = ask(table, wish)
        with pytest.raises(VerificationError):
            verify(graph.module, request.wanted(table), snapshot(table))


def test_a_lost_stack_is_refused():
    graph = prepare()
    root = graph.found.handles.stream.root
    with graph.graph.inserting_after(root):
        mean = graph.graph.call_function(torch.tanh, (graph.value("e"),))
    mean.meta["example_value"] = root.meta["example_value"].clone()
    for user in [user for user in root.users if user is not mean]:
        user.replace_input_with(root, mean)
    graph.graph.eliminate_dead_code()
    with pytest.raises(VerificationError):
        graph.verify()


@settings(max_examples=25)
@given(network=networks(), data=st.data())
def test_any_other_table_is_refused(network: Network, data: st.DataObject):
    """A graph has one table: verification passes for that one only."""
    module = capture(network).module
    normalize(module)
    table = read_table(module.graph)
    before = snapshot(table)
    verify(module, Request({}).wanted(table), before)
    row = data.draw(st.sampled_from(table.rows))
    term = data.draw(st.sampled_from(list(row.reads)))
    with pytest.raises(VerificationError):
        verify(module, Request({row.name: TermSet.of([term])}).wanted(table), before)
    with pytest.raises(VerificationError):
        verify(
            module, Request({}).wanted(table), dataclasses.replace(before, cores=(*before.cores[:-1], "another_node"))
        )
