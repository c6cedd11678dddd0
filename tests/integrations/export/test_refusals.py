# SPDX-License-Identifier: Apache-2.0
"""What is not exported: each with the error that says why, and nothing of the model changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import farskip_compile
from farskip_compile import ConfigError, OriginalWiringError
from farskip_compile.errors import NoResidualStackError, PartialModelError, UnsupportedPatternError
from farskip_compile.models import FarSkipForm
from tests.integrations.export.test_program import IDS, small

COUNTED: list[int] = []


class Counts(nn.Module):
    """Keeps a number, and tensors in a list; `how` says what it does besides."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = small(), how
        self.number, self.kept = 0, []

    def forward(self, ids: torch.Tensor, more: Any = None) -> Any:
        logits = self.inner(ids)
        match self.how:
            case "number":
                self.number += 1
            case "list":
                self.kept.append(logits)
            case "argument":
                more.append(logits)
            case "global":
                COUNTED.append(1)
            case "for a while":
                self.number += 1
                logits = logits * self.number
                self.number -= 1
            case "object":
                return logits, {1}
            case "made elsewhere":
                return logits, torch.ones(1).numpy()
            case "branch":
                return logits * 2 if ids.shape[1] > 4 else logits
            case "size alone":
                return logits * more.shape[0]
            case "break":
                torch._dynamo.graph_break()
                return self.inner(ids) + logits
        return logits


@pytest.mark.parametrize(
    ("how", "place"),
    [("number", r"L\['self'\]"), ("list", "kept"), ("argument", r"L\['more'\]"), ("global", "COUNTED")],
)
def test_objects_of_python_that_change(how: str, place: str) -> None:
    model, more = Counts(how), []
    with pytest.raises(UnsupportedPatternError, match=f"changes objects of Python.*{place}") as caught:
        farskip_compile.export(model, IDS, more)
    assert "buffers" in caught.value.way_out
    assert (model.number, model.kept, more, COUNTED) == (0, [], [], [])


def test_what_changes_back_is_no_change() -> None:
    model = Counts("for a while")
    with torch.no_grad():
        assert torch.equal(farskip_compile.export(model, IDS).module()(IDS), FarSkipForm(model.inner)(IDS))


def test_a_graph_break_is_refused() -> None:
    with pytest.raises(PartialModelError, match="can't capture the model as one graph"):
        farskip_compile.export(Counts("break"), IDS)


def test_a_model_without_experts_in_a_stack_is_refused() -> None:
    with pytest.raises(NoResidualStackError):
        farskip_compile.export(nn.Linear(4, 4), torch.ones(2, 4))


def test_a_model_as_written_is_not_exported() -> None:
    with pytest.raises(OriginalWiringError, match="as it is written") as caught:
        farskip_compile.export(small(), IDS, connectivity="none")
    assert "torch.export.export" in caught.value.way_out


@pytest.mark.parametrize("how", ["object", "made elsewhere"])
def test_what_has_no_place_in_a_program(how: str) -> None:
    with pytest.raises(UnsupportedPatternError, match="the call returns a"):
        farskip_compile.export(Counts(how), IDS)


def test_a_function_is_not_a_model() -> None:
    with pytest.raises(ConfigError, match="is not a module"):
        farskip_compile.export(small().forward, IDS)  # type: ignore[arg-type]


def test_sizes_that_an_example_does_not_show() -> None:
    with pytest.raises(ConfigError, match="a size vary that is 1 in the example"):
        farskip_compile.export(small(), IDS[:1], dynamic_shapes={"ids": {0: Dim("batch")}})
    with pytest.raises(ConfigError, match="lets 3 vary"):
        farskip_compile.export(Counts(""), IDS, 3, dynamic_shapes={"ids": None, "more": Dim.DYNAMIC})
    shapes = {"ids": None, "more": {0: Dim("length")}}
    with pytest.raises(UnsupportedPatternError, match="nor the size of one that it takes"):
        farskip_compile.export(Counts("size alone"), IDS, torch.ones(3), dynamic_shapes=shapes)


def test_a_branch_on_a_size_holds_only_where_it_was_taken() -> None:
    """Dynamo's graph shows one side of it, and no longer that there is another."""
    model = Counts("branch")
    with pytest.raises(torch._dynamo.exc.UserError, match="5 <= L"):
        farskip_compile.export(model, IDS, dynamic_shapes={"ids": {1: Dim("tokens")}})
    program = farskip_compile.export(model, IDS, dynamic_shapes={"ids": {1: Dim.AUTO}})
    with torch.no_grad():
        longer = torch.cat([IDS, IDS], dim=1)
        assert torch.equal(program.module()(longer), FarSkipForm(model.inner)(longer) * 2)
    with pytest.raises(AssertionError, match=">= 5"):
        program.module()(IDS[:, :4])
