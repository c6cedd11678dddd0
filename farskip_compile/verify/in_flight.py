"""Proof that a graph returns what it did, some of it in flight: what nothing here reads, and the next graph waits for.

Contract: `returned` is called before waits are left to the next graph, `verify_in_flight` after it; graphs are looked
at, never what the pass meant to do.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import ops
from farskip_compile.passes.residual.tags import CUSTOM, DEPARTS
from farskip_compile.passes.schedule.in_flight import land_if_recomputed


@dataclass(frozen=True)
class Outputs:
    """What a graph returns, and what it calls."""

    names: tuple[str | None, ...]
    waits: dict[str, tuple[str, bool]]
    """For each output that is a wait: what it waits for, and whether the next graph waits for that."""
    nodes: frozenset[str]


def returned(graph: fx.Graph) -> Outputs:
    """What `graph` returns now."""
    values = _values(graph)
    waits = {
        one.name: (one.all_input_nodes[0].name, DEPARTS in one.meta.get(CUSTOM, {}))
        for one in values
        if one is not None and ops.is_wait(one)
    }
    names = tuple(one.name if one is not None else None for one in values)
    return Outputs(names, waits, frozenset(node.name for node in graph.nodes))


def verify_in_flight(graph: fx.Graph, before: Outputs) -> None:
    """Check that `graph` returns what it did when `before` was recorded.

    Raises:
        VerificationError: naming the value.
    """
    now = _values(graph)
    gone = before.nodes - {node.name for node in graph.nodes}
    allowed = set()
    for value, old in zip(now, before.names, strict=True):
        name = value.name if value is not None else None
        if name == old:
            continue
        launch, promised = before.waits.get(str(old), ("", False))
        if not promised or name != launch or old not in gone:
            raise _error(f"it returns {name!r} in place of {old!r}")
        allowed.add(old)
        assert value is not None
        for user in value.users:
            if user.op != "output" and user.target is not land_if_recomputed():
                raise _error(f"{user.name!r} reads {name!r}, for which nothing waits any more")
    if gone - allowed:
        raise _error(f"{min(gone - allowed)!r} has been removed from it")


def _values(graph: fx.Graph) -> list[fx.Node | None]:
    (output,) = graph.find_nodes(op="output")
    values = output.args[0] if isinstance(output.args[0], tuple | list) else [output.args[0]]
    return [one if isinstance(one, fx.Node) else None for one in values]


def _error(reason: str) -> VerificationError:
    return VerificationError(
        f"a layer that returns a part of its stream in flight: {reason}",
        way_out="nothing was compiled; please report this: it is a defect of farskip-compile",
    )
