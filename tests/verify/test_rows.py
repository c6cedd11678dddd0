# SPDX-License-Identifier: Apache-2.0
"""Which rows of the stream a value depends on: every claim against numbers, and the claims that a proof needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from farskip_compile import FarSkipConfig
from farskip_compile.models import MODELS, build
from farskip_compile.passes.residual import read_table
from farskip_compile.tools.capture import Capture, capture
from farskip_compile.verify.account.begins import rows_begin
from farskip_compile.verify.rows.read import read_rows
from tests.verify.row_oracle import disagreements


def wrong_in(model: nn.Module, *inputs: torch.Tensor) -> tuple[list[str], dict[str, str]]:
    """What is said wrongly of the graph of `model`, and the state of each term."""
    found: list[tuple[list[str], dict[str, str]]] = []

    def look(captured: Capture, given: Any) -> None:
        graph = captured.module.graph
        reading = read_table(graph)
        assert reading is not None
        stream = reading.stream
        begins = rows_begin(graph, stream.base, stream.values)
        rows = read_rows(graph.nodes, begins)
        states = {
            term.name: rows[core].state.name for term, core in zip(reading.table.terms, stream.cores, strict=True)
        }
        found.append((disagreements(captured.module, given, rows, begins), states))

    config = FarSkipConfig(connectivity="none", inner="eager")
    capture(model, inputs, {}, config, then=look, parts=True)
    return found[0]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_said_of_our_models_is_so(name: str) -> None:
    model = build(name, vocab_size=32, hidden_size=32, layers=("dense", "moe")).double()
    wrong, states = wrong_in(model, torch.arange(12).view(2, 6))
    assert not wrong
    assert {name[0]: state for name, state in states.items() if name != "e"} == {
        "a": "MIXED",
        "m": "ROWS",
        "r": "MOVED",
        **({"s": "ROWS"} if any(term[0] == "s" for term in states) else {}),
    }
