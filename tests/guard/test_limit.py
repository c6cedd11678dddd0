# SPDX-License-Identifier: Apache-2.0
"""Beyond the number of versions that Dynamo compiles of one function, a model does not run as it is written."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch._dynamo import config as dynamo_config

import farskip_compile
from farskip_compile import FarSkipWarning
from farskip_compile.errors import PartialModelError
from tests.guard.tiny import IDS, tiny
from tests.handwritten.decoder import Decoder, token_ids
from tests.handwritten.test_experts import Masks

EAGER = {"inner": "eager"}
LONGER = torch.cat([IDS, IDS], 1)


@pytest.fixture
def one_version() -> Iterator[None]:
    with dynamo_config.patch(recompile_limit=1, automatic_dynamic_shapes=False), torch.no_grad():
        yield


def in_place(model: Any, **options: Any) -> Any:
    model.compile(backend="farskip", options=EAGER | options)
    return model


WAYS = {
    "wrapped": lambda model: torch.compile(model, backend="farskip", options=EAGER),
    "in place": in_place,
    "backend": lambda model: torch.compile(model, backend=farskip_compile.backend(inner="eager")),
}


@pytest.mark.parametrize("compiled", WAYS.values(), ids=WAYS)
def test_each_further_version_is_an_error(compiled: Any, one_version: None) -> None:
    model = compiled(tiny())
    expected = model(IDS).logits
    for _ in range(2):
        with pytest.raises(PartialModelError, match=r"as often as it may \(recompile_limit = 1\)") as caught:
            model(LONGER)
        assert "torch.compiler.reset()" in caught.value.way_out
        assert caught.value.where.source is not None
        assert ".py:" in caught.value.where.source
        assert "farskip_compile" not in caught.value.where.source, "the model's own code, not a guard around it"
    assert torch.equal(model(IDS).logits, expected), "versions of before go on"
    with dynamo_config.patch(recompile_limit=2):
        model(LONGER)
    assert [report.left_out["attention.1"] for report in farskip_compile.reports().compiles] == [("r0",)] * 2


def test_what_surrounds_a_layer_is_shared_by_all(one_version: None) -> None:
    """Hooks of accelerate are one function for all layers: without a way through, each attempt is refused."""
    model = cpu_offload(tiny(), execution_device=torch.device("cpu"))
    for attempt in range(4):
        options = {**EAGER, "kinds": {f"attempt::number{attempt}": "dense"}}
        with pytest.raises(PartialModelError):
            torch.compile(model, backend="farskip", options=options)(IDS)


def test_not_strict_says_so(one_version: None) -> None:
    model = tiny()
    expected = model(LONGER).logits
    compiled = torch.compile(model, backend="farskip", options={**EAGER, "strict": False})
    assert not torch.equal(compiled(LONGER).logits, expected)
    torch.compiler.reset()
    compiled(IDS)
    with pytest.warns(FarSkipWarning, match="as it is written, not rewired"):
        assert torch.equal(compiled(LONGER).logits, expected)


def test_with_fullgraph_the_limit_and_the_ways_out_are_named(one_version: None) -> None:
    """Dynamo's own error there names neither. Each way out is tried; `strict` makes no difference."""
    original, longer = Decoder(Masks, layers=2), torch.cat([token_ids(), token_ids()], 1)
    options = {**EAGER, "strict": False}
    model = torch.compile(original, backend="farskip", fullgraph=True, options=options)
    model(token_ids())
    with pytest.raises(
        PartialModelError, match=r"recompile_limit = 1\), and fullgraph=True makes that an error"
    ) as caught:
        model(longer)
    assert caught.value.where.source is not None
    with dynamo_config.patch(recompile_limit=2):
        expected = model(longer)
    torch.compiler.reset()
    assert torch.equal(model(longer), expected)
    torch.compiler.reset()
    dynamic = torch.compile(original, backend="farskip", fullgraph=True, dynamic=True, options=options)
    dynamic(token_ids())
    assert torch.equal(dynamic(longer), expected)


def test_other_backends_are_left_alone(one_version: None) -> None:
    model = tiny()
    expected = [model(ids).logits for ids in (IDS, LONGER)]
    compiled = torch.compile(model, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FarSkipWarning)
        assert torch.equal(compiled(IDS).logits, expected[0])
        assert torch.equal(compiled(LONGER).logits, expected[1])


@torch.no_grad()
def test_a_torch_that_is_written_otherwise_is_said_and_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farskip_compile._compat.limit.ARGUMENTS", ("of_another_torch",))
    compiled = torch.compile(tiny(), backend="farskip", fullgraph=True, options=EAGER)
    with pytest.warns(UserWarning, match="are not watched"):
        compiled(IDS)
    assert farskip_compile.reports().compiles[-1].left_out["attention.1"] == ("r0",)
