# SPDX-License-Identifier: Apache-2.0
"""Proof of exchanges in pieces by token: the old graph and the new one handle labelled tokens, on ranks in memory.

Contract: compares the graph before (a record) with the graph after; shares no code with the pass that cut it, and asks
it nothing. Where tokens go is computed by the graph's own operators, from choices that are drawn; what they become is a
label of all that was done to them, with whom. So a token that meets another one, is lost, or comes back in another
place, has another label. Linear in what has changed, times the ranks of an exchange.

Algorithm:
1. Old nodes that are left make the same call; where one is given a new value, that is a claim (`claims`).
2. What is gone had no effect, or was an exchange or a check of a size. What was added calls what the old graph called,
   takes parts of rows, or joins them.
3. Both graphs are run on all ranks (`ranks`, by `rules`); every claim must hold on every rank, row by row.
   What says the same as a claim that was checked (`alike`) needs no other run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, effects, ops, user_calls
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.verify.claims import claims_of
from farskip_compile.verify.tokens.alike import key_of
from farskip_compile.verify.tokens.ranks import Nodes, SimulatedRanks, Skew, is_exchange, is_given, same

ROUNDS = 2
MORE = 3
"""Of rows that are gathered, for which there may be too little room: rounds besides."""
OTHERS = (0, 4, 32)
"""And such in which one of so many rows does not choose the experts that all others do."""
ADDED = frozenset(["narrow", "cat", "reshape"])
CHECKS = frozenset(["_assert_scalar", "_check", "_check_is_size"])


def verify_tokens(graph: fx.Graph, before: GraphSnapshot) -> None:
    """Check that `graph` computes what it did when `before` was recorded.

    Raises:
        VerificationError: naming the first node that is not what it should be, or of which it is not known.
    """
    was, now = before.restore(), graph
    old, new = ({node.name: node for node in one.nodes} for one in (was, now))
    claims = claims_of(new, old, _error)
    _check_kinds(old, new)
    given = set(old).intersection(new)
    graphs = Nodes(was.nodes), Nodes(now.nodes)
    runs: dict[int, list[tuple[SimulatedRanks, SimulatedRanks]]] = {}
    proved = set()
    draws = _draws(was.nodes)
    for name, node in claims.items():
        count = _ranks(node, given)
        if count not in runs:
            runs[count] = [_of(graphs, given, count, *draw) for draw in draws]
        key = key_of([one.needed(wanted) for one, wanted in zip(runs[count][0], (old[name], node), strict=True)])
        if key is not None and key in proved:
            continue
        for one, other in runs[count]:
            if not all(map(same, one.value_of(old[name]), other.value_of(node))):
                raise _error(node, f"its rows are not those of {name!r}")
        proved |= {key} - {None}


def _of(
    graphs: tuple[Nodes, Nodes], given: Collection[str], count: int, seed: int, skew: Skew | None
) -> tuple[SimulatedRanks, SimulatedRanks]:
    """Both graphs on ranks, with the same given values."""
    first = SimulatedRanks(graphs[0], given, count, seed, _error, skew=skew)
    return first, SimulatedRanks(graphs[1], given, count, seed, _error, first, skew)


def _draws(nodes: Iterable[fx.Node]) -> list[tuple[int, Skew | None]]:
    """Seeds, and how choices are skewed. By all-to-all there is room for all rows. Where rows are gathered, or nothing
    is exchanged, there may be less: so nearly all of them choose the first experts, then the first of this rank's, if
    it subtracts its number."""
    listed = list(nodes)
    rounds: list[tuple[int, Skew | None]] = [(seed, None) for seed in range(ROUNDS)]
    if any(map(comms.is_all_to_all, listed)):
        return rounds
    firsts = {0: None}
    for node in listed:
        numbers = not ops.is_floating(node) and ops.op_name(node) == "sub"
        firsts |= {arg: None for arg in node.args[1:2] if numbers and type(arg) is int and arg > 1}
    skews = [Skew(first, others) for first in list(firsts)[:2] for others in OTHERS]
    more = [*rounds, *((ROUNDS + seed, None) for seed in range(MORE))]
    return [*more, *((len(more) + place, skew) for place, skew in enumerate(skews))]


def _check_kinds(old: Mapping[str, fx.Node], new: Mapping[str, fx.Node]) -> None:
    kept = [node for name, node in new.items() if name in old]
    written = {effects.storage(base) for bases in effects.writers(kept).values() for base in bases} - {None}
    kinds = {_kind(node) for node in old.values() if is_exchange(node)}
    called = {ops.op_name(node) for node in old.values()} | ADDED
    for name, node in new.items():
        if name not in old and (ops.op_name(node) not in called or node.op not in ("call_function", "call_method")):
            raise _error(node, f"{ops.op_name(node) or node.op} was not in the graph")
        if name not in old and any(effects.storage(arg) in written for arg in node.all_input_nodes if arg.name in old):
            raise _error(node, "it reads what is written to")
        if name not in old and is_exchange(node) and _kind(node) not in kinds:
            raise _error(node, "it goes to other ranks than any exchange did")
    for name, node in old.items():
        if name not in new and not _may_go(node, new):
            raise _error(node, "what it did is no longer in the graph")


def _kind(launch: fx.Node) -> tuple[str, str]:
    return str(launch.target), comms.process_group(launch)


def _may_go(node: fx.Node, new: Collection[str]) -> bool:
    if is_exchange(node) or comms.is_wait(node) or ops.op_name(node) in CHECKS:
        return True
    if ops.op_name(node) == "setitem":  # with what it writes to
        return isinstance(node.args[0], fx.Node) and node.args[0].name not in new
    return node.op.startswith("call") and effects.is_pure(node)


def _ranks(node: fx.Node, given: Collection[str]) -> int:
    """Of the exchanges that a value comes from, up to what is given; those of one claim must be among as many. Two for
    sums alone, which do not say how many add up."""
    count = 1
    for one in walk_back([node], lambda one: one.name in given and is_given(one)):
        if comms.is_all_reduce(one):
            count = 2
        elif is_exchange(one):
            size = one.args[2 if comms.is_scatter(one) else 1]
            return size if isinstance(size, int) else len(size)  # type: ignore[arg-type]
    return count


def _error(node: fx.Node, reason: str) -> VerificationError:
    return VerificationError(
        f"exchanges in pieces, by token: {node.name!r} is not what it should be: {reason}",
        way_out="nothing was compiled; please report this: it is a defect of farskip-compile. pieces=1 goes without it",
        where=user_calls.where(node),
    )
