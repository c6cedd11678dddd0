# SPDX-License-Identifier: Apache-2.0
"""Exchanges in pieces, in what Inductor generates: dispatches first, products in between, each phase."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.models import ParallelConfig, build
from farskip_compile.records.schedule import ScheduleReport
from tests.inductor.test_generated_order import get_code_of, programs, quick_link, reports

SMALL: dict[str, Any] = {"vocab_size": 32, "layers": ("moe", "moe"), "hidden_size": 64, "experts": 8}


def padded(group: Any, **overrides: Any) -> torch.nn.Module:
    return build("mixtral", parallel=ParallelConfig(ep_group=group), **{**SMALL, **overrides})


def test_both_dispatches_are_launched_before_the_first_combine(two_ranks: Any) -> None:
    forward, backward = programs(padded(two_ranks), connectivity="none", pieces=2)
    for program in (forward, backward):
        exchanges = [place for place, step in enumerate(program) if step == "all_to_all_single"]
        assert len(exchanges) == 2 * 4
        for first in (0, 4):
            one, two, three, four = exchanges[first : first + 4]
            assert "bmm" not in program[one:two]
            assert "bmm" in program[two:three], "the first experts, while the second dispatch is on its way"
            assert "bmm" in program[three:four], "the second experts, while the first combine is"


def test_reports_say_what_was_cut(two_ranks: Any) -> None:
    for report in reports(padded(two_ranks), connectivity="none", pieces=4, check_order=False):
        assert (report.pieces, report.exchanges_cut, report.exchanges_whole) == (4, 2, ())
        assert report.pieces_same_bits is not None
        rounding = "same bits" if report.pieces_same_bits else "other rounding"
        assert f"2 exchanges in 4 pieces ({rounding})" in report.summary()
        assert ScheduleReport.from_json(report.to_json()) == report


@pytest.mark.parametrize(("bandwidth", "pieces"), [(1e13, {1}), (1e8, {2, 4})])
def test_auto_cuts_where_the_estimate_says_that_it_pays(bandwidth: float, pieces: set[int], two_ranks: Any) -> None:
    link = dataclasses.replace(quick_link().inter_node, bandwidth=bandwidth)
    profile = dataclasses.replace(quick_link(), intra_node=link, inter_node=link)
    found = reports(padded(two_ranks), connectivity="none", pieces="auto", profile=profile, check_order=False)
    assert {report.pieces for report in found} <= pieces


@pytest.mark.parametrize("name", ["schedule_graph", "schedule_kernels"])
def test_auto_cuts_alike_where_a_pass_is_left_out(name: str, two_ranks: Any) -> None:
    options: dict[str, Any] = {"connectivity": "none", "pieces": "auto", "check_order": False}
    link = dataclasses.replace(quick_link().inter_node, bandwidth=1e8)
    options["profile"] = dataclasses.replace(quick_link(), intra_node=link, inter_node=link)
    whole = reports(padded(two_ranks), **options)
    found = reports(padded(two_ranks), disable_passes=[name], **options)
    assert [one.pieces for one in found] == [one.pieces for one in whole]
    assert {one.pieces for one in found} <= {2, 4}


def test_lengths_may_be_symbols(two_ranks: Any) -> None:
    compiled = torch.compile(
        padded(two_ranks),
        backend="farskip",
        fullgraph=True,
        dynamic=True,
        options={"connectivity": "none", "pieces": 2, "check_order": False},
    )
    with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
        codes = get_code_of(compiled, torch.randint(0, 32, (2, 16)))
    assert [code.count("_c10d_functional.all_to_all_single.default(") for code in codes] == [8, 8]


def test_layers_one_by_one(two_ranks: Any) -> None:
    """A layer that is compiled by itself, as FSDP2 users do."""
    model = padded(two_ranks)
    layer = model.layers[0]  # type: ignore[index,union-attr]
    compiled = torch.compile(
        layer.feed_forward, backend="farskip", fullgraph=True, options={"connectivity": "none", "pieces": 2}
    )
    with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
        codes = get_code_of(compiled, torch.randn(2, 8, 64, requires_grad=True))
    assert [code.count("_c10d_functional.all_to_all_single.default(") for code in codes] == [4, 4]


def gathered(group: Any) -> torch.nn.Module:
    return build("mixtral", parallel=ParallelConfig(ep_group=group, ep_mode="allgather"), **SMALL)


def test_an_exchange_by_gather_is_cut_along_tokens(two_ranks: Any) -> None:
    for report in reports(gathered(two_ranks), connectivity="none", pieces=2, check_order=False):
        assert (report.pieces, report.exchanges_cut, report.exchanges_whole) == (2, 2, ())
        assert report.pieces_along == ("tokens",)
        assert "2 exchanges in 2 pieces by tokens" in report.summary()


def test_an_exchange_by_gather_is_not_cut_along_experts(two_ranks: Any) -> None:
    model = gathered(two_ranks)
    along: dict[str, Any] = {"connectivity": "none", "check_order": False, "pieces_along": "experts"}
    with pytest.raises(UnsupportedPatternError, match=r"(?s)tokens are gathered for all experts.*moe\.py"):
        reports(model, pieces=2, **along)
    torch.compiler.reset()
    forward, *_ = reports(model, pieces=2, strict=False, **along)
    assert len(forward.exchanges_whole) == 2
    assert all("tokens are gathered for all experts" in text for text in forward.exchanges_whole)
    assert forward.exchanges_cut == 0
