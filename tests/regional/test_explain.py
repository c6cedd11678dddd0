# SPDX-License-Identifier: Apache-2.0
"""What is said of layers compiled one by one is what is said of the whole model."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import pytest
import torch
from rich.console import Console

import farskip_compile
from farskip_compile.errors import PartialModelError
from farskip_compile.tools.explain import Explanation, explain, text
from tests.regional.test_regional import IDS, model_of

NOTHING = {"apart": [], "stays": {}, "parts": 0}


def shown(found: Explanation, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(text.explanation(found, console))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("connectivity", "layers"), [("full", None), ("attention", (1, 2)), ({"moe.2": ["a2"]}, None)])
def test_the_same_is_said_as_of_the_whole_model(connectivity: Any, layers: Any) -> None:
    model = model_of()
    whole = explain(copy.deepcopy(model), IDS, connectivity=connectivity, layers=layers)
    regional = farskip_compile.regional(model, connectivity, layers, inner="eager")
    with torch.no_grad():
        model(IDS)
    ours = regional.explain()
    for width in (80, 120):
        assert shown(ours, width) == shown(whole, width)
    said, expected = ours.to_json(), whole.to_json()
    assert said["connectivity"] == expected["connectivity"]
    assert said["layers"] == expected["layers"]
    assert said["report"]["sub_blocks"] == expected["report"]["sub_blocks"]


def test_explain_names_who_knows() -> None:
    model = model_of()
    farskip_compile.regional(model, "full", inner="eager")
    found = explain(model, IDS)
    assert found.refusal is not None
    assert "explain()" in found.refusal.way_out


def test_nothing_is_said_before_the_first_call() -> None:
    regional = farskip_compile.regional(model_of(), "full", inner="eager")
    with pytest.raises(PartialModelError, match="no layer has been compiled"):
        regional.explain()


def test_a_report_says_how_the_stream_leaves() -> None:
    model = model_of()
    farskip_compile.regional(model, "full", inner="eager")
    with torch.no_grad():
        model(IDS)
    said = [json.loads(json.dumps(report.to_json()))["departure"] for report in farskip_compile.reports().compiles]
    landed = {"apart": ["r0"], "stays": {"r0": "nothing is in flight"}, "parts": 2}
    assert said == [NOTHING, landed, landed, NOTHING]  # dense, first with experts, others, last
