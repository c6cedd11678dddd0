# SPDX-License-Identifier: Apache-2.0
"""A graph must hold the whole residual stack: FarSkip connects two layers, so a part of a model can't be rewired.

In:    a normalised graph from Dynamo, and what was read off it, or the error because of which that is nothing.
Out:   nothing, or the error that says what cuts the stack.
Never: changes the graph.

Algorithm: note how the graph begins and ends (`_Ends`); the first condition of `RULES` that holds gives the error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from farskip_compile._compat import callers_graph_break, graph_break_reason, is_module_state, is_resumed
from farskip_compile.errors import FarSkipError, NotASumError, PartialModelError, Where
from farskip_compile.passes.graph import ops
from farskip_compile.passes.residual import Reading
from farskip_compile.passes.residual.not_a_sum import not_a_sum
from farskip_compile.verify.account.fragment import another_form
from farskip_compile.verify.graph_break_hints import REGIONAL, known_break, stated


def check_complete(module: fx.GraphModule, reading: Reading | None) -> None:
    """Raise if `module` holds only a part of a residual stack; `reading` is what was read off it.

    Raises:
        PartialModelError: Dynamo cut the stack, or the graph is a single layer.
        NotASumError: there are layers, but what they add up to is not a sum (and Dynamo did not cut it).
    """
    ends = _Ends(module, reading)
    for applies, error in RULES:
        if applies(ends):
            raise error(ends)


def check_part(module: fx.GraphModule, reading: Reading | None) -> None:
    """Raise if `module`, a layer that is to be compiled by itself, has no residual stream, or is cut inside.

    Raises:
        PartialModelError: a graph break cuts it, or nothing in it adds to a stream.
    """
    ends = _Ends(module, reading)
    if ends.broken or ends.resumed:
        raise _cut(INSIDE, ends.cut, ops.name_written(ends.mixer) if ends.mixer is not None else None)
    if reading is None:
        raise not_a_sum(module.graph) or PartialModelError(
            "a layer that is compiled by itself has no residual stream: nothing in it is computed from a value and "
            "added to that value",
            way_out="leave it out: farskip_compile.regional(..., stack=...) names the layers; or compile the model",
            where=ops.where(ends.mixer) if ends.mixer is not None else None,
        )


def cut_inside_a_layer(module: fx.GraphModule, error: NotASumError) -> PartialModelError | None:
    """The error for a stream that can't be read because of a graph break; None if there was none."""
    ends = _Ends(module, None)
    return _cut(INSIDE, ends.cut, error.where.node) if ends.broken or ends.resumed else None


def known_cut(module: fx.GraphModule, found: Where) -> PartialModelError | None:
    """The error for a graph break with a known way out, by the break at either end of `module`, or by the line of what
    was `found` in it."""
    return known_break(f"{_Ends(module, None).cut or ''} {found.source or ''}", found.node)


@dataclass(frozen=True)
class _Ends:
    """How a graph begins and ends."""

    module: fx.GraphModule
    reading: Reading | None

    @cached_property
    def broken(self) -> str | None:
        """Why Dynamo ended the graph, if by a graph break."""
        return graph_break_reason(self.module)

    @cached_property
    def resumed(self) -> bool:
        """The graph continues a frame after a graph break."""
        return is_resumed(self.module)

    @property
    def cut(self) -> str | None:
        """The graph break at either end."""
        return self.broken or callers_graph_break()

    @cached_property
    def mixer(self) -> fx.Node | None:
        """The first attention."""
        return next((node for node in self.module.graph.nodes if ops.is_attention(node)), None)

    @cached_property
    def begins_open(self) -> bool:
        """The residual stream comes in as an input of the call."""
        base = self.reading.stream.base if self.reading is not None else None
        return base is not None and base.op == "placeholder" and not is_module_state(base)

    @cached_property
    def ends_open(self) -> bool:
        """The residual stream is returned as it is."""
        if self.reading is None:
            return False
        stream, everything = self.reading.stream, self.reading.table.everything
        whole = {stream.root, *(value for value in stream.values if stream.values[value] == everything)}
        return not whole.isdisjoint(next(iter(reversed(self.module.graph.nodes))).all_input_nodes)

    @property
    def only_returned(self) -> bool:
        """Nothing but the caller uses the end of the stream."""
        return self.reading is not None and all(user.op == "output" for user in self.reading.stream.root.users)


INSIDE = "inside a layer"


def _cut(place: str, reason: str | None, node: str | None) -> PartialModelError:
    said, source = stated(reason or "")
    at = f", at {source}" if source else ""
    way_out = "remove the break; torch.compiler.reset() before compiling again"
    return known_break(reason, node) or PartialModelError(
        f"a graph break cuts the residual stack {place}: {said or 'reason unknown'}{at}",
        way_out=way_out if place == INSIDE else f"{way_out}; {REGIONAL}",
        where=Where(node=node, source=source),
    )


def _no_stream_in_a_part(ends: _Ends) -> FarSkipError:
    return _cut(INSIDE, ends.cut, ops.name_written(ends.mixer) if ends.mixer is not None else None)


def _no_stream(ends: _Ends) -> FarSkipError:
    layer = another_form(ends.module.graph)
    if layer is not None:
        return not_a_sum(ends.module.graph) or NotASumError(
            f"there is attention in the graph, but no residual stream: {layer[1]}",
            way_out="streams that are mixed or scaled by activations are not supported; write every skip connection as "
            "a plain add",
            where=ops.where(layer[0]),
        )
    return not_a_sum(ends.module.graph) or PartialModelError(
        "there is attention in the graph, and nothing that it is added to: a part of a layer seems to be compiled by "
        "itself",
        way_out='compile the whole model: torch.compile(model, backend="farskip", fullgraph=True); or '
        'connectivity="none", which rewires nothing',
        where=ops.where(ends.mixer) if ends.mixer is not None else None,
    )


def _cut_before_its_end(ends: _Ends) -> FarSkipError:
    assert ends.reading is not None
    return _cut("before its end", ends.broken, ops.name_written(ends.reading.stream.root))


def _cut_before_its_beginning(ends: _Ends) -> FarSkipError:
    assert ends.reading is not None
    return _cut("before its beginning", callers_graph_break(), ops.name_written(ends.reading.stream.base))


def _single_layer(ends: _Ends) -> FarSkipError:
    assert ends.reading is not None
    cut, base, rows = callers_graph_break(), ends.reading.stream.base, ends.reading.table.rows
    said, source = stated(cut or "")
    why = f", because Dynamo met a graph break: {said}" + (f", at {source}" if source else "")
    return known_break(cut, ops.name_written(base)) or PartialModelError(
        f"the graph begins and ends with the raw residual stream ({len(rows)} sub-blocks in it): layers "
        f"seem to be compiled one by one, and FarSkip connects two layers{why if cut else ''}",
        way_out=f"remove the break; torch.compiler.reset() before compiling again; {REGIONAL}"
        if cut
        else 'compile the whole model: torch.compile(model, backend="farskip", fullgraph=True); or prepare its '
        "layers before they are compiled: farskip_compile.regional(model, compile=False)",
        where=Where(node=ops.name_written(base), source=source) if source else ops.where(base),
    )


RULES: tuple[tuple[Callable[[_Ends], object], Callable[[_Ends], FarSkipError]], ...] = (
    (lambda e: e.reading is None and e.mixer and (e.broken or e.resumed), _no_stream_in_a_part),
    (lambda e: e.reading is None and e.mixer, _no_stream),
    (lambda e: e.broken and e.ends_open, _cut_before_its_end),
    (lambda e: e.resumed and e.begins_open, _cut_before_its_beginning),
    (lambda e: e.begins_open and e.ends_open and e.only_returned, _single_layer),
)
"""(condition, error), in order of precedence. Anything else is a whole stack, or a graph without one."""
