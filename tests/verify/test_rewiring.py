# SPDX-License-Identifier: Apache-2.0
"""What the verifier says, and that it accepts one table of a graph only. `tests.mutation` plants faults for it."""

from __future__ import annotations

import dataclasses
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.residual.sums import read_dataflow
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.passes.rewire.request import RewireRequest, ask
from farskip_compile.testing.strategies import capture, networks
from farskip_compile.testing.strategies.network import GeneratedNetwork
from farskip_compile.verify.rewiring import snapshot, verify
from farskip_compile.verify.steps import evaluate
from farskip_compile.verify.values import read_steps
from tests.graphs import reads
from tests.mutation.bench import rewired
from tests.mutation.models import PARALLEL, PLAIN, REDUCING, SCALED
from tests.mutation.value_faults import multiplied_twice
from tests.mutation.wiring_faults import X1, attention_reads_the_full_stream


def test_the_message_names_the_row_and_the_terms():
    graph = rewired()
    attention_reads_the_full_stream(graph)
    with pytest.raises(VerificationError, match=r"attention\.1 reads \['r0'\]") as caught:
        graph.verify()
    assert caught.value.where.layer == 1


def test_rows_outside_of_the_range_are_checked():
    graph = rewired(layers=(2, 2))
    graph.redirect("moe.1", graph.value(X1))
    with pytest.raises(VerificationError, match=r"moe\.1"):
        graph.verify()


def test_a_table_that_was_not_reached_is_refused():
    """Verifying an edit that did nothing, or too much."""
    graph = rewired(wish="attention")
    for wish in ("full", "mlp"):
        request = ask(graph.found.table, wish)
        with pytest.raises(VerificationError):
            verify(graph.module, request.wanted(graph.found.table), snapshot(graph.found))


@pytest.mark.parametrize("base", [PLAIN, PARALLEL, REDUCING])
def test_what_was_found_is_given_in_the_numbers_of_the_table_before(base):
    graph = rewired(base)
    found = graph.verify()
    assert found.table == graph.wanted
    assert reads(found.table) == reads(graph.wanted)
    for core, name in zip(found.stack.stream.cores, found.names, strict=True):
        assert core.name == graph.before.cores[graph.wanted.term(name).index]


@settings(max_examples=25)
@given(network=networks(), data=st.data())
def test_any_other_table_is_refused(network: GeneratedNetwork, data: st.DataObject):
    """A graph has one table: verification passes for that one only."""
    module = capture(network).module
    normalize(module)
    reading = read_table(module.graph)
    table, before = reading.table, snapshot(reading)
    verify(module, RewireRequest({}).wanted(table), before)
    row = data.draw(st.sampled_from(table.rows))
    term = data.draw(st.sampled_from(list(row.reads)))
    with pytest.raises(VerificationError):
        verify(module, RewireRequest({row.name: TermSet.of([term])}).wanted(table), before)
    with pytest.raises(VerificationError):
        verify(
            module,
            RewireRequest({}).wanted(table),
            dataclasses.replace(before, cores=(*before.cores[:-1], "another_node")),
        )


@settings(max_examples=25)
@given(network=networks(), data=st.data())
def test_any_other_constant_is_seen(network: GeneratedNetwork, data: st.DataObject):
    """Every number in a graph is in the number of its node."""
    module = capture(network).module
    normalize(module)
    reading = read_table(module.graph)
    table, before = reading.table, snapshot(reading)
    places = [
        (node, place)
        for node in module.graph.nodes
        for place, arg in enumerate(node.args)
        if isinstance(arg, float) or (isinstance(arg, int) and not isinstance(arg, bool))
    ]
    if not places:
        return
    node, place = data.draw(st.sampled_from(places))
    node.update_arg(place, node.args[place] + 1)
    with pytest.raises(VerificationError):
        verify(module, RewireRequest({}).wanted(table), before)


def numbers(network: GeneratedNetwork) -> list[int]:
    module = capture(network).module
    normalize(module)
    return evaluate(read_steps(read_table(module.graph).stream.flow).steps)


@settings(max_examples=10)
@given(network=networks())
def test_equal_graphs_have_equal_numbers(network: GeneratedNetwork):
    """Nothing depends on an address or on what was done before."""
    assert numbers(network) == numbers(network)


def test_a_sum_is_a_sum_however_it_is_written():
    def last_number(how):
        graph = fx.Graph()
        x, y = (graph.placeholder(name) for name in "xy")
        for node in (x, y, total := how(graph, x, y)):
            node.meta["example_value"] = torch.empty(2, 3)
        graph.output(total)
        flow = read_dataflow(graph)
        return evaluate(read_steps(flow).steps)[flow.order[total]]

    plain = last_number(lambda graph, x, y: graph.call_function(operator.add, (x, y)))
    assert plain == last_number(lambda graph, x, y: graph.call_function(torch.add, (y, x)))
    assert plain == last_number(lambda graph, x, y: graph.call_function(torch.add, (x, y), {"alpha": 1}))
    assert plain == last_number(lambda graph, x, y: graph.call_method("add", (x, y)))
    assert plain != last_number(lambda graph, x, y: graph.call_function(torch.add, (x, y), {"alpha": 2}))
    assert plain != last_number(lambda graph, x, y: graph.call_function(operator.sub, (x, y)))


def test_a_lost_coefficient_is_told_as_such():
    graph = rewired(SCALED)
    multiplied_twice(graph)
    with pytest.raises(VerificationError, match=r"does not have the value asked for"):
        graph.verify()
