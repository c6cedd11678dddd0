# SPDX-License-Identifier: Apache-2.0
"""Compare the graph that Dynamo made with the one that `normalize` made of it.

Contract: runs in every compile, after `arrive` and `normalize`, and on what they made alone. Shares no code with
either, nor with detection, and changes nothing. Linear.

Algorithm:
1. A graph of the same nodes, none of them changed and none of which writes, computes the same.
2. Of any other, make an account of memory (`account`) before and after. What is returned, what is left in the memory of
   inputs, and what is done besides must be equal.
3. A read of memory that was written must depend on the last write by an edge, or by the edges of memory that the passes
   after this one use. Detection follows these, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from farskip_compile.errors import VerificationError, Where
from farskip_compile.passes.graph import ops, user_calls
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.verify.normalized.account import Account, Ledger
from farskip_compile.verify.normalized.callees import Callee, callee_of
from farskip_compile.verify.normalized.memory import Numbers
from farskip_compile.verify.normalized.sharing import Sharing
from farskip_compile.verify.normalized.twins import CheckedAutocast


def verify_normalized(
    module: fx.GraphModule,
    before: GraphSnapshot,
    after: Mapping[fx.Node, Sequence[fx.Node]],
    autocast: CheckedAutocast = None,
) -> None:
    """Check that the graph of `module` computes what it did when it was recorded.

    Args:
        module: what was normalised.
        before: its graph as Dynamo made it.
        after: for each node the writes to memory that it is known to come after, although no edge says so.
        autocast: device type and type of the autocast that the graph will run under.

    Raises:
        VerificationError: naming the first node whose value is another one, or an effect that is.
    """
    graph = module.graph
    if before.shows(graph, besides=_is_mark) and not after and not _writes(graph):  # 1
        return
    old, new = _ledgers(module, before, after, autocast)  # 2
    if new.unordered is not None:  # 3
        reader, writer = new.unordered
        raise _error(graph, reader, f"reads memory that {writer!r} has written, and does not depend on it")
    if (old.returned, old.left, [one for one, _ in old.acts]) != (new.returned, new.left, [one for one, _ in new.acts]):
        raise _difference(graph, *_ledgers(module, before, after, autocast, keep=True))


def _ledgers(
    module: fx.GraphModule,
    before: GraphSnapshot,
    after: Mapping[fx.Node, Sequence[fx.Node]],
    autocast: CheckedAutocast,
    *,
    keep: bool = False,
) -> tuple[Ledger, Ledger]:
    numbers, sharing = Numbers(), Sharing()
    old = Account(numbers, sharing, autocast, keep=keep).run(before.records, module)
    sharing.complete = True
    return old, Account(numbers, sharing, autocast, after, keep=keep).run(module.graph.nodes, module)


def _is_mark(node: fx.Node) -> bool:
    return not node.users and ops.op_name(node) == "added_alone"


def _writes(graph: fx.Graph) -> bool:
    """Return whether a node of `graph` writes to an argument; each target is looked at once."""
    known: dict[object, Callee] = {}
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        key = node.target if isinstance(node.target, str) else id(node.target)
        callee = known.get(key)
        if callee is None:
            callee = known[key] = callee_of(node.target, node.op == "call_method")
        if callee.written or ((callee.flag is not None or node.kwargs) and callee.writes_to(node.args, node.kwargs)):
            return True
    return False


def _difference(graph: fx.Graph, old: Ledger, new: Ledger) -> VerificationError:
    """Name the first node that has another value than before; else the effect, or the output."""
    for node in graph.nodes:
        if node.name in old.values and new.values.get(node.name, 0) != old.values[node.name]:
            return _error(graph, node.name, "has another value than in the graph that Dynamo made")
    for (one, name), (other, then) in zip(new.acts, old.acts, strict=False):
        if one != other:
            return _error(graph, name, f"does something else, or at another time, than {then!r} did")
    if len(old.acts) != len(new.acts):
        longer, what = (old, "is no longer there") if len(old.acts) > len(new.acts) else (new, "was not there before")
        name = longer.acts[min(len(old.acts), len(new.acts))][1]
        return _error(graph, name, f"does more than compute a value, and {what}")
    for held in {**old.left, **new.left}:
        if old.left.get(held) != new.left.get(held):
            return _error(graph, "output", f"comes when {held} holds something else than it did")
    return _error(graph, "output", "returns other values, or other memory, than in the graph that Dynamo made")


def _error(graph: fx.Graph, name: str, what: str) -> VerificationError:
    node = next((one for one in graph.nodes if one.name == name), None)
    return VerificationError(
        f"bringing the graph to single-assignment form changed it: {name!r} {what}",
        way_out="nothing was compiled; please report this: it is a defect of farskip-compile",
        where=user_calls.where(node) if node is not None else Where(node=name),
    )
