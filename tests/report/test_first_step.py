# SPDX-License-Identifier: Apache-2.0
"""One line at the first step of each compiled model: seen by default, easily silenced, never twice."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

import farskip_compile
from farskip_compile.models import build
from farskip_compile.records.announcement import Announcement
from farskip_compile.records.registry import COMPILES
from farskip_compile.records.runs import watched
from farskip_compile.records.schedule import Predicted, ScheduleReport, listener

IDS = torch.arange(8).view(1, 8)
NAME = "farskip_compile.first_step"
LINE = (
    "Decoder: rewired 3 of 3 rows asked for (4 in all): attention leaves out the routed experts of the layer before; "
    "moe leaves out the attention of its own layer. No overlap expected (one process); no manifest."
)


def model_of(connectivity: str = "full", **options: Any) -> Any:
    model = build("mixtral", vocab_size=16, hidden_size=32, layers=("moe", "moe"))
    model.compile(backend="farskip", options={"inner": "eager", "connectivity": connectivity, **options})
    return model


def said(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == NAME and one.levelno >= level]


def test_each_model_is_announced_once_at_its_first_step(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of()
    assert said(caplog) == []
    model(IDS).sum().backward()
    assert said(caplog) == [LINE]
    with torch.no_grad():
        model(IDS)
    model(IDS[:, :5])
    assert len(farskip_compile.reports().compiles) > 1
    assert said(caplog) == [LINE], "recompiles that came out alike are not told"
    model_of()(IDS)
    assert said(caplog) == [LINE] * 2, "another model, with nothing compiled for it"
    torch.compile(lambda x: x + 1, backend="farskip", options={"inner": "eager"})(torch.ones(2))
    assert said(caplog) == [LINE] * 2, "no residual stack"


def test_a_model_compiled_layer_by_layer_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    model = build("mixtral", vocab_size=16, hidden_size=32, layers=("moe", "moe"))
    farskip_compile.regional(model, inner="eager")
    for _ in range(2):
        model(IDS)
    assert said(caplog) == [LINE]


def test_what_is_not_rewired_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model_of("none")(IDS)
    assert ["not rewired, as asked" in text for text in said(caplog)] == [True]
    dense = build("deepseek_v3", vocab_size=16, hidden_size=32, layers=("dense",))
    dense.compile(backend="farskip", options={"inner": "eager", "strict": False})
    with pytest.warns(farskip_compile.FarSkipWarning):
        dense(IDS)
    assert ["NOT REWIRED" in text for text in said(caplog, logging.WARNING)] == [True]


def test_it_is_seen_by_default_and_silenced_as_logging_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(NAME), "hasHandlers", lambda: False)  # as in a program without pytest's
    first = model_of()
    first(IDS)
    assert capsys.readouterr() == ("", f"farskip: {LINE}\n")
    for name in (NAME, "farskip_compile"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.WARNING)
        model_of()(IDS)
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    logging.disable(logging.INFO)
    model_of()(IDS)
    logging.disable(logging.NOTSET)
    monkeypatch.setenv("RANK", "1")
    model_of()(IDS)
    assert capsys.readouterr() == ("", "")


FIGURES = Predicted(2.0, 1.5, 1.0, 0.25, 0, 0)


def test_what_is_expected_comes_from_the_schedules_of_this_model(caplog: pytest.LogCaptureFixture) -> None:
    """Forward and backward, also if another model has announced the same text before."""
    texts = [
        Announcement(ScheduleReport(phase, after=replace(FIGURES, exposed_seconds=left), profile="h100")).to_text()
        for phase, left in (("forward", 0.25), ("backward", 0.5))
    ]

    class CompiledFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            torch.ops.farskip.announce(texts[0])
            return value * 2

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            torch.ops.farskip.announce(texts[1])
            return gradient * 2

    model = model_of()
    model(IDS)
    report = farskip_compile.reports().compiles[-1]
    caplog.clear()
    for _ in range(2):
        weight = torch.nn.Parameter(torch.ones(3))
        module = torch.fx.symbolic_trace(torch.nn.Identity())
        run = watched(lambda value: (CompiledFunction.apply(value).view(3),), module, [weight], report, 1.0)
        (output,) = run(weight)
        assert listener() is None
        output.sum().backward()
        assert listener() is None
        (graph,) = COMPILES.graphs_of([weight])
        assert {phase: one.after.exposed_seconds for phase, one in graph.schedules.items()} == {
            "forward": 0.25,
            "backward": 0.5,
        }
        run(weight)[0].sum().backward()
        assert graph.runs == 2
    assert ["Expected overlap 75 % of the forward communication (h100)" in text for text in said(caplog)] == [True] * 2
