# SPDX-License-Identifier: Apache-2.0
"""A layer whose exchanges were cut is read once more: terms are known by core or parameters, and must read the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import fx

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.boundary.again import TermBeforeCut, known_terms, read_again
from tests.graphs import Layer, MoE, reading_of

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def read() -> tuple[fx.Graph, list[TermBeforeCut]]:
    reading = reading_of(Layer(MoE()).double().eval(), X)
    return reading.stream.root.graph, known_terms(reading, [term.name for term in reading.table.terms])


def test_terms_are_known_by_their_cores_and_by_parameters_where_the_cut_made_new_ones() -> None:
    graph, known = read()
    _, names = read_again(graph, known)
    assert list(names) == [one.name for one in known]
    for one in known[1:]:
        core = next(node for node in graph.nodes if node.name == one.core)
        with graph.inserting_after(core):
            new = graph.node_copy(core)
        core.replace_all_uses_with(new)
        graph.erase_node(core)
        stream, names = read_again(graph, known)
        assert list(names) == [one.name for one in known]
        assert new in stream.cores


def test_a_term_that_reads_something_else_is_refused() -> None:
    graph, known = read()
    place = next(place for place, one in enumerate(known) if one.name == "r0")
    wrong = [*known]
    wrong[place] = replace(known[place], reads=frozenset({"e"}))
    with pytest.raises(UnsupportedPatternError, match="r0 reads other terms"):
        read_again(graph, wrong)


def test_terms_that_can_not_be_told_apart_are_refused() -> None:
    graph, known = read()
    same = [one if one.name == "e" else replace(one, core="gone", parameters=frozenset()) for one in known]
    with pytest.raises(UnsupportedPatternError, match="which of its terms is which"):
        read_again(graph, same)


def test_a_sum_of_other_terms_is_refused() -> None:
    graph, known = read()
    with pytest.raises(UnsupportedPatternError, match="other terms"):
        read_again(graph, known[:-1])
