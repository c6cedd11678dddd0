"""Around a compiled part of a model: what it returns in parts becomes a carrier.

Contract: `carrying` is given what the inner backend made of a graph that `boundary.depart` has cut. What comes out is
called by Dynamo's code as the graph that Dynamo has captured would be: it returns as many values, with a carrier in
place of the stream. Sizes that data decides stay unknown to the next graph, on every rank alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from farskip_compile._compat.aot import keep_sizes_open
from farskip_compile.carrier import Carrier
from farskip_compile.carrier.trail import Passed, note
from farskip_compile.passes.boundary.depart import Departure
from farskip_compile.passes.residual.table import Table


def carrying(compiled: Callable[..., Any], departure: Departure | None, table: Table) -> Callable[..., Any]:
    """`compiled`, as Dynamo expects it; None: the graph is no part of a model."""
    if departure is None:
        return compiled
    passed = Passed(table, departure.apart)

    def run(*args: Any) -> Any:
        outputs = compiled(*args)
        note(passed)
        if not departure.tail:
            return outputs
        end = len(outputs) - departure.extra
        returned, parts = list(outputs[:end]), outputs[end:]
        for place, sizes in departure.open_sizes.items():
            keep_sizes_open(parts[place], sizes)
        stream = Carrier(departure.tail, (returned[departure.positions[0]], *parts))
        for place in departure.positions:
            returned[place] = stream
        return tuple(returned)

    return run
