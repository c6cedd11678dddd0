# SPDX-License-Identifier: Apache-2.0
"""Account for everything: what has weights lies in a sub-block, in front of the stream, or behind it.

Contract: `check_account` is given a normalised graph, and what was read off it as plain claims: the residual values,
the nodes of the sub-blocks, the base and the root. It raises, or returns the parts of the model that stand beside the
stack, for reports. It shares no code with detection, and takes nothing else from it on trust.

What the residual sum does not reach may be a layer in another form (`torch.lerp`, a fused add, layers inside
`torch.cond`), a second stack, or something that is none: an embedding, a tower, a head, a loss. A layer shows in one of
three ways:

    it adds to what it is computed from, in whatever form: a value of the stream's shape is made of x as it is, and of
    f(x), with weights in f (`find_layer`)
    one operator that nothing is known about, given weights, returns a value of the stream's shape (`find_layer`)
    with weights, it decides about rows, as a router does (`routes`, and behind what mixes rows `find_experts`)

Algorithm (linear), for all nodes outside of the claims that something uses:
1. Which side each is on: in front of the base, behind a residual value, or apart from both.
2. In front and behind: refuse what shows a layer.
3. Routed experts apart from the stack, or with a stream of their own, are a second stack: refuse.
4. What is left and has weights is named in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, field

from torch import fx

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import effects, ops, user_calls
from farskip_compile.passes.graph.walk import spread, walk_back
from farskip_compile.verify.account.begins import first_with_rows_of, shape_of
from farskip_compile.verify.account.layers import find_layer, find_layer_with_other_rows, is_normed
from farskip_compile.verify.account.routers import find_experts
from farskip_compile.verify.account.weights import applies_weights, begins_rows, has_weights, routes, weighted_sources
from farskip_compile.verify.rows.read import begin, read_rows
from farskip_compile.verify.rows.rules import is_state
from farskip_compile.verify.rows.state import FREE, RowDependence, RowFacts


@dataclass(frozen=True)
class Claims:
    """What was read off a graph."""

    base: fx.Node
    root: fx.Node
    values: Collection[fx.Node]
    """Residual values."""
    owned: Set[fx.Node]
    """Nodes of sub-blocks, and of the sum."""
    given: Collection[fx.Node] = ()
    """Terms beside the base that no sub-block adds, such as position embeddings."""
    unfinished: bool = False
    """True: the last sub-block mixes tokens, and its layer has no feed-forward yet."""


@dataclass(frozen=True)
class Beside:
    """A part of the model that has weights and is none of the stack: it is left as it is written."""

    place: str
    """`in front`, `behind` or `apart`."""
    products: int
    """Products with weights in it."""
    mixes: bool
    """Whether it mixes rows, as an encoder or a next-token head does; an embedding and an output layer do not."""
    source: str | None
    """The line of the first one."""

    def __str__(self) -> str:
        what = "mixes tokens" if self.mixes else "works on each token by itself"
        return (
            f"{self.place} the stack: {self.products} products with weights, {what} ({self.source or 'source unknown'})"
        )


def check_account(graph: fx.Graph, claims: Claims, rows: Mapping[fx.Node, RowFacts]) -> tuple[Beside, ...]:
    """See the module's contract. `rows` begin at `seeds`.

    Raises:
        UnsupportedPatternError: something with weights is none of what it may be.
    """
    sides = _Sides(graph, claims, rows)
    sides.refuse_layers()  # 2
    sides.refuse_second_stacks()  # 3
    return sides.beside()  # 4


@dataclass
class _Sides:
    """What lies outside of the claims."""

    graph: fx.Graph
    claims: Claims
    rows: Mapping[fx.Node, RowFacts]
    in_front: list[fx.Node] = field(default_factory=list)
    behind: list[fx.Node] = field(default_factory=list)
    apart: list[fx.Node] = field(default_factory=list)
    alone: Mapping[fx.Node, RowFacts] = field(default_factory=dict)
    """Of what is apart: rows that begin there."""

    def __post_init__(self) -> None:
        """Step 1."""
        before = set(walk_back([self.claims.base]))
        values = frozenset(self.claims.values)
        used = _used(self.graph)
        depends: set[fx.Node] = set()
        for node in self.graph.nodes:
            inputs = node.all_input_nodes
            if not values.isdisjoint(inputs) or not depends.isdisjoint(inputs):
                depends.add(node)
            if node in self.claims.owned or node not in used or node.op == "output":
                continue
            side = self.behind if node in depends else self.in_front if node in before else self.apart
            side.append(node)

    def refuse_layers(self) -> None:
        """Step 2."""
        shape = shape_of(self.claims.base)
        first = first_with_rows_of(self.graph, self.claims.base)
        if first is not None and first is not self.claims.base:
            self._refuse(find_layer([*self.in_front, self.claims.base], {first}, shape), "in front of")
            before = set(walk_back([self.claims.base]))
            nodes = [node for node in self.graph.nodes if node in before]
            # `self.rows` begin anew at the base, which may be the result of experts by itself
            for node in routes(nodes, read_rows(nodes, begin([first]))):
                raise _refusal(node, "experts are chosen in front of the residual sum, with weights")
        self._refuse(find_layer(self.behind, self.claims.values, shape), "behind")
        self._refuse_sub_blocks_in_the_embedding()
        self._refuse_layers_with_other_rows()

    def _refuse_sub_blocks_in_the_embedding(self) -> None:
        """Refuse a term that no sub-block adds, and that weights make of what another such term is made of."""
        terms = [self.claims.base, *self.claims.given]
        sources = {node: _plain_sources(node) for node in terms} if len(terms) > 1 else {}
        for node in sources:
            others = set().union(*(sources[other] for other in terms if other is not node))
            if not others.isdisjoint(weighted_sources(node)):
                raise _refusal(node, "a value that is added to the embedding is computed from it, with weights")

    def _refuse_layers_with_other_rows(self) -> None:
        """Refuse layers that the stream comes from, or reaches, without weights in between: in whatever shape, they are
        a part of the stack, and the rows of the stream were changed in a way that the residual sum does not go through.
        A tower or a head of its own is told by a norm or a product with weights in between.
        """
        activations = spread(self.graph.nodes, begins_rows)

        def parts_stacks(node: fx.Node) -> bool:
            return applies_weights(node) or is_normed(node, activations)

        leads_on = _plain_sources(self.claims.base, parts_stacks)
        goes_on = set(self.claims.values)
        for node in self.behind:
            if not goes_on.isdisjoint(node.all_input_nodes) and not parts_stacks(node):
                goes_on.add(node)
        found_behind = find_layer_with_other_rows(self.behind, goes_on, self.claims.unfinished)
        found_in_front = find_layer_with_other_rows(self.in_front, leads_on)
        for found, place in ((found_in_front, "in front of"), (found_behind, "behind")):
            if found is not None:
                raise UnsupportedPatternError(
                    f"{place} the residual sum stands a layer with other rows, and no weights between the two: the "
                    "stream's rows are changed there in a way that the sum does not go through",
                    way_out="take rows by indices that do not depend on the stream, by one operator (x[:, i], "
                    "index_select, gather, a cat with other rows); or compile the two parts apart from each other",
                    where=user_calls.where(found),
                )

    @staticmethod
    def _refuse(found: tuple[fx.Node, str] | None, place: str) -> None:
        if found is not None:
            raise _refusal(found[0], f"{place} the residual sum, {found[1]}")

    def refuse_second_stacks(self) -> None:
        """Step 3."""
        if any(map(has_weights, self.apart)):
            self.alone = read_rows(self.graph.nodes, begin(node for node in self.apart if begins_rows(node)))
            for node in routes(self.apart, self.alone):
                raise _second_stack(node)
        several = {*self.in_front, *self.behind, *self.apart}
        outside = [node for node in self.graph.nodes if node in several]
        experts = find_experts(self.graph, outside, self.claims.values)
        if experts is not None:
            raise _second_stack(experts)

    def beside(self) -> tuple[Beside, ...]:
        """Step 4."""
        found = []
        for place, nodes in (("in front of", self.in_front), ("behind", self.behind), ("apart from", self.apart)):
            products = [node for node in nodes if has_weights(node)]
            if products:
                rows = self.alone if nodes is self.apart else self.rows
                mixes = any(rows.get(node, FREE).state >= RowDependence.MIXED for node in products)
                found.append(Beside(place, len(products), mixes, user_calls.source_line(products[0])))
        return tuple(found)


def _plain_sources(node: fx.Node, parts: Callable[[fx.Node], bool] = applies_weights) -> set[fx.Node]:
    """Find the activations that `node` is made of without an operator that `parts` in between, `node` included."""
    found = walk_back([node], lambda one: one is not node and parts(one))
    return {one for one in found if ops.is_floating(one) and not is_state(one)}


def _used(graph: fx.Graph) -> set[fx.Node]:
    """What an output or a write depends on."""
    return set(walk_back(node for node in graph.nodes if node.op == "output" or effects.mutated_args(node)))


def _second_stack(node: fx.Node) -> UnsupportedPatternError:
    return UnsupportedPatternError(
        "experts are chosen outside of the residual stack that was read, with weights: a second stack with routed "
        "experts, which would stay in its original wiring",
        way_out="compile the two stacks apart from each other, each as a model of its own",
        where=user_calls.where(node),
    )


def _refusal(node: fx.Node, what: str) -> UnsupportedPatternError:
    return UnsupportedPatternError(
        f"{what}: a layer in another form, of which the residual sum knows nothing",
        way_out="write every skip connection as a plain add, outside of higher-order operators; say what a custom "
        "operator is with farskip_compile.declare_op; or compile this part apart from the stack",
        where=user_calls.where(node),
    )
