# SPDX-License-Identifier: Apache-2.0
"""A graph must hold the whole residual stack: FarSkip connects two layers, so a part of a model can't be rewired.

In:    a normalised graph from Dynamo, and what was read off it, or the error because of which that is nothing.
Out:   nothing, or the error that says what cuts the stack.
Never: changes the graph.

Algorithm: note how the graph begins and ends (`_Ends`); the first condition of `RULES` that holds gives the error. A
graph is a whole stack only by proof: of its beginning and of its end (`account.ends`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from farskip_compile._compat import callers_graph_breaks, graph_break_reason, is_resumed
from farskip_compile._compat.modules import input_path
from farskip_compile.errors import FarSkipError, NotASumError, PartialModelError, Where
from farskip_compile.passes.graph import ops, user_calls
from farskip_compile.passes.residual import Reading
from farskip_compile.passes.residual.not_a_sum import not_a_sum
from farskip_compile.passes.residual.table import TermKind
from farskip_compile.text_utils import amount
from farskip_compile.verify.account.ends import open_beginning, open_end
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
        raise _cut(INSIDE, ends.cut, user_calls.name_written(ends.mixer) if ends.mixer is not None else None)
    if reading is None:
        raise not_a_sum(module.graph) or PartialModelError(
            "a layer that is compiled by itself has no residual stream: nothing in it is computed from a value and "
            "added to that value",
            way_out="leave it out: farskip_compile.regional(..., stack=...) names the layers; or compile the model",
            where=user_calls.where(ends.mixer) if ends.mixer is not None else None,
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

    @cached_property
    def began(self) -> str | None:
        """The graph break that cut off the callers: one with a known way out, else the innermost."""
        breaks = callers_graph_breaks()
        return next(filter(known_break, breaks), breaks[0] if breaks else None)

    @property
    def cut(self) -> str | None:
        """The graph break at either end."""
        return self.broken or self.began

    @cached_property
    def mixer(self) -> fx.Node | None:
        """The first attention."""
        return next((node for node in self.module.graph.nodes if ops.is_attention(node)), None)

    @cached_property
    def open_inputs(self) -> list[fx.Node]:
        """The inputs of the call that nothing shows to be embeddings, and that the residual stream begins with."""
        if self.reading is None:
            return []
        terms, stream = self.reading.table.terms, self.reading.stream
        first = next((term.index for term in terms if term.kind is not TermKind.EMBEDDING), len(terms))
        bases = [value for value, held in stream.values.items() if held.newest < first]
        return open_beginning(self.module.graph, [*stream.leaves[:first], *bases])

    @cached_property
    def open_end(self) -> fx.Node | None:
        """The value by which the residual stream is returned as it is."""
        if self.reading is None:
            return None
        stream, everything = self.reading.stream, self.reading.table.everything
        whole = (value for value in stream.values if stream.values[value] == everything)
        return open_end(self.module.graph, {stream.root, *whole})


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
    return _cut(INSIDE, ends.cut, user_calls.name_written(ends.mixer) if ends.mixer is not None else None)


def _no_stream(ends: _Ends) -> FarSkipError:
    if (known := known_break(ends.cut)) is not None:
        return known
    layer = another_form(ends.module.graph)
    if layer is not None:
        return not_a_sum(ends.module.graph) or NotASumError(
            f"there is attention in the graph, but no residual stream: {layer[1]}",
            way_out="streams that are mixed or scaled by activations are not supported; write every skip connection as "
            "a plain add",
            where=user_calls.where(layer[0]),
        )
    return not_a_sum(ends.module.graph) or PartialModelError(
        "there is attention in the graph, and nothing that it is added to: a part of a layer seems to be compiled by "
        "itself",
        way_out='compile the whole model: torch.compile(model, backend="farskip", fullgraph=True); or '
        'connectivity="none", which rewires nothing',
        where=user_calls.where(ends.mixer) if ends.mixer is not None else None,
    )


def _cut_before_its_end(ends: _Ends) -> FarSkipError:
    assert ends.reading is not None
    return _cut("before its end", ends.broken, user_calls.name_written(ends.reading.stream.root))


def _cut_before_its_beginning(ends: _Ends) -> FarSkipError:
    assert ends.reading is not None
    return _cut("before its beginning", ends.began, user_calls.name_written(ends.reading.stream.base))


def _part(ends: _Ends) -> FarSkipError:
    assert ends.reading is not None
    cut, base, rows = ends.began, ends.reading.stream.base, ends.reading.table.rows
    if (known := known_break(cut, user_calls.name_written(base))) is not None:
        return known
    count = amount(len(rows), "sub-block")
    inputs = [input_path(one) for one in ends.open_inputs]
    names = [path if (last := path.rpartition(".")[-1]).isdigit() else last for path in inputs]
    begins = [f'"{name}": "embedding"' for name in names]
    said = ", ".join([*begins, *(['"return": "final"'] if ends.open_end is not None else [])])
    say_so = f'say so: options={{"kinds": {{{said}}}}}'
    said_of_break, source = stated(cut or "")
    at = f", at {source}" if source else ""
    break_met = f", because Dynamo met a graph break: {said_of_break}{at}" if cut else ""
    if ends.open_inputs and ends.open_end is not None:
        return PartialModelError(
            f"the graph begins and ends with the raw residual stream ({count} in it): layers seem to be compiled one "
            f"by one, and FarSkip connects two layers{break_met}",
            way_out=f"remove the break; torch.compiler.reset() before compiling again; {REGIONAL}"
            if cut
            else 'compile the whole model: torch.compile(model, backend="farskip", fullgraph=True); or prepare its '
            "layers before they are compiled: farskip_compile.regional(model, compile=False); if this is a whole "
            f"model, from its embedding to its end, {say_so}",
            where=Where(node=user_calls.name_written(base), source=source) if source else user_calls.where(base),
        )
    whole = "compile the whole model, without pipeline stages"
    if ends.open_end is not None:
        return PartialModelError(
            f"the raw residual stream is returned, {count} in it: the graph may be the first part of a model, such as "
            f"a pipeline stage{break_met}",
            way_out=f"{whole}, together with its final norm or its head; if all of it ends like this, or returns its "
            f"last hidden state besides, {say_so}",
            where=user_calls.where(ends.open_end),
        )
    return PartialModelError(
        f"the residual stream begins with an input of the call, {', '.join(map(repr, names))}, and {count} follow: the "
        f"graph may be the last part of a model, such as a pipeline stage{break_met}",
        way_out=f"{whole}; if this input is an embedding, as inputs_embeds is, {say_so}",
        where=user_calls.where(base),
    )


RULES: tuple[tuple[Callable[[_Ends], object], Callable[[_Ends], FarSkipError]], ...] = (
    (lambda e: e.reading is None and e.mixer and (e.broken or e.resumed), _no_stream_in_a_part),
    (lambda e: e.reading is None and e.mixer, _no_stream),
    (lambda e: e.broken and e.open_end is not None, _cut_before_its_end),
    (lambda e: e.resumed and e.open_inputs, _cut_before_its_beginning),
    (lambda e: e.open_inputs or e.open_end is not None, _part),
)
"""(condition, error), in order of precedence. Anything else is a whole stack, or a graph without one."""
