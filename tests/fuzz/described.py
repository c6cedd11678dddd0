# SPDX-License-Identifier: Apache-2.0
"""Networks whose table is known by construction: what is demanded of each.

In:    a `Described`: a network, and a number from which ranges and user tables follow.
Out:   counts; or the first demand that is not met, as `Broken`.

Demands: the table read off the graph is the one of the construction, or the network is refused; `none` and every other
connectivity is refused for the reason that `ask` gives, or the graph then computes, bit for bit, what the description
says when its blocks leave those terms out (`evaluate` knows no graph). For standard wiring, the terms left out are
those of the paper's rules, written down once more here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from farskip_compile.errors import FarSkipError
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import Reading, read_table
from farskip_compile.passes.residual.table import Table
from farskip_compile.passes.rewire.request import LayerRange, ask
from farskip_compile.testing.strategies import capture, evaluate, networks
from farskip_compile.testing.strategies.network import GeneratedNetwork, state
from farskip_compile.testing.strategies.network_graph import GeneratedGraph
from tests.fuzz.demands import attempt, check_refusal, demand
from tests.fuzz.machine import duplicate, run_nodes, same
from tests.fuzz.wishes import Wish, said, wishes
from tests.properties.test_table import described_rows, left_out_of_blocks, terms_by_mark


@dataclass(frozen=True)
class Described:
    """A network; `standard` if attention and feed-forward alternate and read the whole stream."""

    network: GeneratedNetwork
    standard: bool
    number: int


@st.composite
def described(draw: st.DrawFn) -> Described:
    """Any wiring, or the standard one."""
    standard = draw(st.booleans())
    return Described(draw(networks(standard=standard)), standard, draw(st.integers(0, 999)))


def check_described(example: Described) -> Counter[str]:
    """Check one network.

    Raises:
        Broken: a demand is not met.
    """
    network = example.network
    captured = capture(network)
    arguments = _arguments(captured, network)
    demand(
        same(captured.run(network), evaluate(network)), "the captured graph does not compute what the description says"
    )
    normal = GeneratedGraph(duplicate(captured.module), captured.marks, captured.states)
    try:
        normalize(normal.module)
        reading = read_table(normal.module.graph)
    except FarSkipError as error:
        check_refusal(error)
        made = attempt(captured.module, "full")  # under `none` a part of a model is let pass
        demand(made.said == type(error).__name__, f"the passes raise {type(error).__name__}, the pipeline: {made.said}")
        return Counter({f"refused {made.said}": 1})
    if reading is None:
        made = attempt(captured.module, "full")
        demand(made.error is not None, "no residual stack was found")
        return Counter({f"refused {made.said}": 1})
    table, ours = reading.table, terms_by_mark(reading, normal)
    _demand_table(network, reading, ours)
    counts = Counter({"accepted": 1})
    for wish in wishes(table, example.number):
        counts += _check_wish(example, captured, table, ours, wish, arguments)
    return counts


def _demand_table(network: GeneratedNetwork, reading: Reading, ours: list[int]) -> None:
    table = reading.table
    terms = range(len(network.term_kinds))
    demand(sorted(ours) == list(terms), f"terms found: {ours}")
    kinds = {ours[term.index]: str(term.kind) for term in table.terms}
    demand(kinds == {term: network.kind_of(term) for term in terms}, f"kinds found: {kinds}")
    rows = described_rows(table, ours)
    demand(rows == set(network.rows()), f"rows found: {rows}, described: {network.rows()}")
    final = reading.stream.terms_of(reading.stream.root)
    demand(set(final) == set(terms), f"the final state holds {final}")


def _check_wish(
    example: Described, captured: GeneratedGraph, table: Table, ours: list[int], wish: Wish, arguments: list[Any]
) -> Counter[str]:
    connectivity, layers = wish
    made = attempt(captured.module, connectivity, layers)
    counted = Counter({said(connectivity, made.said): 1})
    try:
        request = ask(table, connectivity, layers)
    except FarSkipError as error:
        demand(made.said == type(error).__name__, f"{wish}: expected {error!r}, the pipeline: {made.said}")
        return counted
    if made.error is not None:
        return counted
    asked = left_out_of_blocks(example.network, table, ours, request)
    if example.standard and isinstance(connectivity, str):
        leaves_out = {block: terms for block, terms in asked.items() if terms}
        rule = standard_wish(example.network, connectivity, layers)
        demand(leaves_out == rule, f"{wish} leaves out {leaves_out}, the rule says {rule}")
    output = run_nodes(made.module, arguments).outputs
    demand(same(output, evaluate(example.network, asked)), f"{wish}: other bits than the description's")
    return counted


def standard_wish(network: GeneratedNetwork, connectivity: str, layers: LayerRange) -> dict[int, frozenset[int]]:
    """The rules of arXiv 2511.11505 and 2501.06589 for attention and feed-forward in turn: block -> terms left out."""
    first, last = layers or (0, len(network.blocks) // 2 - 1)
    wish: dict[int, frozenset[int]] = {}
    for layer in range(first, last + 1):
        attention, feed_forward = network.blocks[2 * layer : 2 * layer + 2]
        before = frozenset(network.blocks[2 * layer - 1].terms if layer > 0 else ())
        routed = frozenset(term for term in before if network.term_kinds[term] == "routed")
        if connectivity not in ("mlp", "none"):
            wish[attention.index] = before if connectivity == "ladder" else routed
        if connectivity not in ("attention", "none"):
            lags = connectivity == "lag2" and any(network.term_kinds[term] == "routed" for term in feed_forward.terms)
            wish[feed_forward.index] = frozenset(attention.terms) | (routed if lags else frozenset())
    return {block: terms for block, terms in wish.items() if terms}


def _arguments(captured: GeneratedGraph, network: GeneratedNetwork) -> list[Any]:
    inputs = [node for node in captured.module.graph.nodes if node.op == "placeholder"][1:]
    return [*network.inputs(), *(state(str(n.target), tuple(n.meta["example_value"].shape)) for n in inputs)]
