# SPDX-License-Identifier: Apache-2.0
"""The table as data: to JSON and back, with cells taken away and put back, equal by its wiring alone."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farskip_compile.errors import Where
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.residual.table import BadCell, SubBlock, Table, Term, TermKind
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.testing.strategies import capture, networks
from farskip_compile.testing.strategies.network import GeneratedNetwork


def table_of(network: GeneratedNetwork) -> Table:
    module = capture(network).module
    normalize(module)
    reading = read_table(module.graph)
    assert reading is not None
    return reading.table


@settings(max_examples=25)
@given(network=networks(), data=st.data())
def test_json_round_trip_with_any_cells_left_out(network: GeneratedNetwork, data: st.DataObject) -> None:
    table = table_of(network)
    gone = {
        row.name: TermSet.of(data.draw(st.sets(st.sampled_from([*row.reads]), max_size=len(row.reads) - 1)))
        for row in table.rows
    }
    changed = table.without(gone)
    plain = json.loads(json.dumps(changed.to_json()))
    assert Table.from_json(plain["terms"], plain["sub_blocks"]) == changed
    assert changed.as_written() == table
    for before, after in zip(table.rows, changed.rows, strict=True):
        assert (after.reads, after.left_out) == (before.reads - gone[before.name], gone[before.name])
        assert changed.skipped(after) == table.skipped(before)  # in the model as written
        assert set(table.skipped(before)).isdisjoint({*before.reads, *before.terms})


def small() -> Table:
    terms = (
        Term(0, "e", TermKind.EMBEDDING, 0),
        Term(1, "a0", TermKind.ATTENTION, 0),
        Term(2, "r0", TermKind.ROUTED, 0),
    )
    everything = TermSet(((0, 2),))
    rows = (
        SubBlock("attention.0", TermKind.ATTENTION, 0, (1,), TermSet(((0, 1),))),
        SubBlock("moe.0", TermKind.ROUTED, 0, (2,), everything),
    )
    return Table(terms, rows)


def test_notes_are_not_compared_and_wiring_is() -> None:
    table = small()
    noted = dataclasses.replace(
        table.terms[2], node="mul_7", evidence="top-k", where=Where(layer=0), collectives=("x",)
    )
    assert dataclasses.replace(table, terms=(*table.terms[:2], noted)) == table
    assert table.without({"moe.0": TermSet.of([1])}) != table
    assert table.without({}) == table


@pytest.mark.parametrize(
    ("row", "key", "value", "says"),
    [
        (0, "kind", "shared", "'sub_blocks.0.kind' should be one of attention"),
        (1, "adds", [], "'sub_blocks.1.adds' should be a list of names"),
        (1, "reads", "a0..e", "'sub_blocks.1.reads' should be names"),
        (1, "left_out", "a0", "'sub_blocks.1.left_out' should be something that it does not read"),
        (1, "name", "attention.0", "'sub_blocks' should be a list without repetitions"),
    ],
)
def test_json_that_is_not_a_table(row: int, key: str, value: object, says: str) -> None:
    plain = small().to_json()
    plain["sub_blocks"][row][key] = value
    with pytest.raises(BadCell) as caught:
        Table.from_json(plain["terms"], plain["sub_blocks"])
    assert says in str(caught.value)
