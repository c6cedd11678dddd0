# SPDX-License-Identifier: Apache-2.0
"""Every line of the table of operators, as the account of rows reads it, held against numbers.

Each operator is called in many ways, alone and in chains. Sizes are often equal, or 1: that is where a layout that is
wrong by a dimension looks right.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from farskip_compile.passes.graph.operators import OPERATORS, Effect, is_tagged_pointwise, names_with
from farskip_compile.passes.normalize.accumulations import added_alone
from farskip_compile.passes.normalize.definitions import after_write
from farskip_compile.passes.normalize.puts import put_sum
from farskip_compile.verify.rows.layout import of_stream
from farskip_compile.verify.rows.read import begin, read_rows
from farskip_compile.verify.rows.state import RowDependence, RowFacts, merged
from tests.economy import examples
from tests.verify.drawn_graphs import Drawing
from tests.verify.operator_calls import CALLS

SHAPES = [(2, 2, 2), (1, 3, 3), (3, 2, 3), (2, 1, 3)]
NOT_SEEN = frozenset(["empty", "empty_like", "new_empty", "not_", "fma", "sym_size", "sym_stride", "sym_numel"])
"""Their values are nobody's, or no tensors; or only Inductor has the operator."""
ON_RANKS = frozenset(name for name in OPERATORS if "::" in name) | names_with(Effect.PLACE)
"""They need ranks, or another library."""
POINTWISE = sorted(
    name
    for name in dir(torch.ops.aten)
    if is_tagged_pointwise(name)
    and name not in OPERATORS
    and not name.endswith("_")
    and not name.startswith("_foreach")
)


def added_alone_on(base: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(base).index_add(0, index, source)


def grouped(rows: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    starts = torch.arange(len(rows)).unsqueeze(-1) >= ends[:-1]
    return torch.einsum("tk,tkn->tn", rows, weights[starts.sum(-1).clamp_max(len(weights) - 1)])


def scaled(a: torch.Tensor, b: torch.Tensor, of_a: torch.Tensor, of_b: torch.Tensor, bias: Any = 0) -> torch.Tensor:
    found = a @ b
    return (found * of_a * of_b + bias).view_as(found)  # no scale is larger


scaled.__name__ = "_scaled_mm"
added_alone_on.__name__ = added_alone.__name__  # rules go by names
grouped.__name__ = "grouped_mm"


class Calls:
    """The names in expressions, on one drawing."""

    def __init__(self, shape: Sequence[int], seed: int = 0) -> None:
        torch.manual_seed(seed)  # of random operators
        self.drawing = d = Drawing(shape, seed)
        last = shape[-1]
        x = d.x
        self.names: dict[str, Any] = {
            "torch": torch,
            "F": F,
            "operator": operator,
            "added_alone_on": added_alone_on,
            "put_sum": put_sum,
            "after_write": after_write,
            "grouped": grouped,
            "scaled": scaled,
            "d": self,
            "n": last,
            "w": d.input("w", d.random(last, last)),
            "w3": d.input("w3", d.random(last, last, 1)),
            "z": d.input("z", d.random(*shape)),
            "i": d.input("i", torch.tensor([1, 0]) % min(shape)),
            "i3": d.input("i3", torch.arange(shape[0] * shape[1] * last).reshape(tuple(shape)) % min(shape)),
        }
        self.starts = [x, x.transpose(0, 1), x.permute(2, 0, 1), x.flatten(0, 1), x.transpose(1, 2)]
        flat, i = x.flatten(0, 1), self.names["i"]
        best = x.sum(-1).topk(min(2, shape[1]), -1)[1]
        self.picks = [
            flat[i],
            x[:, i],
            x.gather(1, best.unsqueeze(-1).expand(-1, -1, last)),
            (F.one_hot(best, shape[1]).double() @ x).transpose(-1, -2),
            flat[i].unsqueeze(0).expand(2, -1, -1),
            torch.zeros_like(flat).index_add(0, i, flat[i]),
        ]
        self.others = [
            x.sigmoid(),
            x.transpose(0, 1),
            x.roll(1, 1),
            x.mean(-1, keepdim=True),
            (x > 0).double(),
            (x.roll(1, 1) > 0).double(),
            self.names["z"],
            self.names["w"][0],
        ]
        self.call = d.call
        self.x = x

    def write(self, value: fx.Proxy, places: Any, written: Any) -> fx.Proxy:
        copy = value.clone()
        self.call(operator.setitem, copy, places, written)
        return copy + 0

    def through(self, value: fx.Proxy, written: Any) -> fx.Proxy:
        """A write through another view of the same memory, made before or after it."""
        copy = value.clone()
        copy.transpose(0, 1).copy_(written)
        return copy + 0

    def part(self, value: fx.Proxy, written: Any) -> fx.Proxy:
        copy = value.clone()
        view = copy.transpose(0, 1)
        copy.mul_(written)
        return view + 0

    def evaluate(self, call: str, v: fx.Proxy, o: fx.Proxy) -> Any:
        """The value of an expression; None where PyTorch refuses it."""
        try:
            result = eval(call, {**self.names, "v": v, "o": o})
            value = self.drawing.values.get(result.node) if isinstance(result, fx.Proxy) else None
        except Exception:
            return None
        return result if isinstance(value, torch.Tensor) else None


def test_contributing_shows_a_line_of_the_table() -> None:
    text = " ".join((Path(__file__).parents[2] / "CONTRIBUTING.md").read_text().split())
    shown = re.search(r'\(Operator\(E\.(\w+), at=(\d)\), "(\w+)"\)', text)
    assert shown is not None
    line = OPERATORS[shown[3]]
    assert (line.effect.name, line.at) == (shown[1], int(shown[2]))
    assert shown[3] in CALLS


def test_no_line_of_the_table_is_left_out() -> None:
    tagged = {name for name in CALLS if name not in OPERATORS and is_tagged_pointwise(name)}
    assert set(CALLS) - tagged | {"grouped_mm"} == set(OPERATORS) - ON_RANKS - NOT_SEEN


@pytest.mark.parametrize("name", CALLS)
def test_each_operator(name: str) -> None:
    calls = CALLS[name]
    ran = set()
    wrong = []
    for shape in SHAPES[:2]:
        drawn = Calls(shape)
        for call in calls:
            for v in (*drawn.starts, *drawn.picks):
                for o in drawn.others if "o" in names_in(call) else drawn.others[:1]:
                    if drawn.evaluate(call, v, o) is not None:
                        ran.add(call)
        wrong += drawn.drawing.wrong()
    assert not wrong, "\n".join(wrong)
    assert ran == set(calls)


def names_in(call: str) -> set[str]:
    return set(compile(call, "call", "eval").co_names)


def test_each_pointwise_operator() -> None:
    drawn = Calls((2, 2, 2))
    ran = set()
    for name in POINTWISE:
        whole = f"torch.ops.aten.{name}"
        calls = [
            f"{whole}({args})" for args in ("v", "v, o", "o, v", "v, v, o", "v, 0.5", "v > 0, o, v", "v, 0.1, 0.9")
        ]
        for call in [*calls, f"v.{name}(o)", f"{whole}(v.long() % 3, (o > 0).long()) * v"]:
            for o in drawn.others[1:6:2] if "o" in names_in(call) else drawn.others[:1]:
                if drawn.evaluate(call, drawn.x, o) is not None:
                    ran.add(name)
    wrong = drawn.drawing.wrong()
    assert not wrong, "\n".join(wrong)
    assert len(ran) > 150


def test_bits_of_a_value_are_no_decision() -> None:
    drawing = Drawing((2, 2, 2))
    again = drawing.x.roll(1, 1).view(torch.int64).view(torch.float64)
    rows = read_rows(drawing.graph.nodes, begin([drawing.x.node]))
    assert rows[again.node].state is RowDependence.UNKNOWN


def test_a_mark_is_up_to_date_until_the_next_write() -> None:
    drawing = Drawing((2, 3, 2))
    buffer = torch.zeros_like(drawing.x)
    mark = drawing.call(after_write, buffer, buffer.copy_(drawing.x))
    early = mark * 2
    buffer.copy_(drawing.x.cumsum(1))
    late = mark * 2
    rows = read_rows(drawing.graph.nodes, begin([drawing.x.node]))
    assert rows[early.node].state < RowDependence.MIXED == rows[late.node].state
    assert not drawing.wrong()


@torch.library.custom_op("farskip_tests::fill_by_choice", mutates_args=("out",))
def fill_by_choice(out: torch.Tensor, choice: torch.Tensor) -> None:
    out.copy_(choice.roll(1, 1)[..., None].expand_as(out))


def test_of_what_an_unknown_operator_fills_by_decisions_nothing_is_known() -> None:
    drawing = Drawing((2, 3, 2))
    buffer = torch.zeros_like(drawing.x)
    write = drawing.call(torch.ops.farskip_tests.fill_by_choice.default, buffer, drawing.x.argmax(-1))
    mark = drawing.call(after_write, buffer, write)
    rows = read_rows(drawing.graph.nodes, begin([drawing.x.node]))
    assert rows[mark.node].state is RowDependence.UNKNOWN


def test_picked_rows_in_unknown_places_may_be_scaled_but_not_multiplied() -> None:
    drawn = Calls((2, 2, 2))
    scattered = torch.zeros_like(drawn.x).masked_scatter(drawn.x > 0, drawn.picks[0])
    scaled, product = scattered * 2.0, scattered @ drawn.names["w"]
    rows = read_rows(drawn.drawing.graph.nodes, begin([drawn.x.node]))
    assert (
        rows[scattered.node]
        == rows[scaled.node]
        == RowFacts(RowDependence.MOVED, decided=True, summed=True, at=scattered.node)
    )
    assert rows[product.node].state is RowDependence.UNKNOWN


def test_picked_rows_are_added_up_and_nothing_else() -> None:
    drawn = Calls((2, 2, 2))
    places = drawn.picks[4]
    results = {name: getattr(places, name)(1) for name in ("sum", "mean", "amax", "prod")}
    rows = read_rows(drawn.drawing.graph.nodes, begin([drawn.x.node]))
    states = {name: (rows[result.node].state, rows[result.node].summed) for name, result in results.items()}
    assert states["sum"] == states["mean"] == (RowDependence.MOVED, True)
    assert states["amax"] == states["prod"] == (RowDependence.MIXED, False)


def test_decisions_about_several_rows_are_about_none() -> None:
    one, other = (RowFacts(RowDependence.DECISION, of_stream(shape)) for shape in ((2, 3, 4), (3, 2, 4)))
    assert merged([one, one]) == one
    assert merged([one, other]) == RowFacts(RowDependence.DECISION)


STEPS = [call for name in CALLS for call in CALLS[name]]


def draw_chain(data: st.DataObject) -> list[str]:
    """Draw a graph of several operators, and say what is claimed wrongly of it."""
    drawn = Calls(data.draw(st.sampled_from(SHAPES)), data.draw(st.integers(0, 3)))
    values = [*drawn.starts, *drawn.others, *drawn.picks]
    for _ in range(data.draw(st.integers(2, 6))):
        newest = st.sampled_from(values[::-1])
        result = drawn.evaluate(data.draw(st.sampled_from(STEPS)), data.draw(newest), data.draw(newest))
        if result is not None and drawn.drawing.values[result.node].numel() < 500:
            values.append(result)
    return drawn.drawing.wrong()


@settings(max_examples=examples(120))
@given(st.data())
def test_chains(data: st.DataObject) -> None:
    assert not draw_chain(data)
