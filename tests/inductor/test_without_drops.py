# SPDX-License-Identifier: Apache-2.0
"""How many pieces "auto" takes for an exchange without drops, and that dynamic numbers of tokens stay whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import fx

from farskip_compile.comm import combine, dispatch
from farskip_compile.compiler.config import FarSkipConfig, Resolved, resolve
from farskip_compile.compiler.inductor_passes.without_drops import cut_without_drops
from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.costs import HardwareProfile, default_profile
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.pieces.notes import is_piece

RANKS, EXPERTS, WIDTH = 2, 16, 64


def captured(rows: int, wide: int, *, dynamic: bool = False) -> fx.GraphModule:
    """Experts of one product each, [WIDTH, wide] and back."""
    weights = [torch.randn(WIDTH, wide), torch.randn(wide, WIDTH)]
    found: list[fx.GraphModule] = []

    def layer(x: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        given, receipt = dispatch(x, experts, experts=EXPERTS, group=dist.group.WORLD)
        return combine([one @ weights[0] @ weights[1] for one in given], receipt)

    def keep(module: fx.GraphModule, _: Any) -> Any:
        found.append(module)
        return module.forward

    torch.compiler.reset()
    compiled = torch.compile(layer, backend=keep, fullgraph=True, dynamic=dynamic)
    compiled(torch.randn(rows, WIDTH), torch.arange(rows) % EXPERTS)
    return found[0]


def link(bandwidth: float, latency: float) -> HardwareProfile:
    profile = default_profile("cpu")
    kinds = replace(profile.inter_node.latency, all_to_all=latency)
    ends = {"bandwidth": bandwidth, "latency": kinds, "step_latency": 0.0}
    return replace(
        profile, inter_node=replace(profile.inter_node, **ends), intra_node=replace(profile.intra_node, **ends)
    )


def asked(**options: Any) -> Resolved:
    return resolve(FarSkipConfig(**options))


def pieces_of(module: fx.GraphModule, profile: HardwareProfile, pieces: Any = "auto") -> int:
    cut_without_drops(module, asked(pieces=pieces, pieces_along="experts"), profile)
    return sum(map(is_piece, ops.calls(module.graph, comms.is_all_to_all))) // 2 or 1


@pytest.mark.parametrize(
    ("rows", "wide", "bandwidth", "latency", "wanted"),
    [
        (4096, 4096, 1e9, 1e-6, 4),  # as long on the wire as in the experts
        (4096, 4096, 1e9, 1e-1, 1),  # each launch takes longer than the experts
        (64, 16, 1e12, 1e-4, 1),  # next to nothing is sent
        (4096, 16, 1e8, 1e-5, 1),  # nothing to compute meanwhile
    ],
)
def test_auto_goes_by_what_is_sent_and_computed(
    rows: int, wide: int, bandwidth: float, latency: float, wanted: int
) -> None:
    with fake_ranks(RANKS):
        assert pieces_of(captured(rows, wide), link(bandwidth, latency)) == wanted


def test_a_number_of_tokens_that_is_a_symbol_is_left_whole_unless_pieces_are_asked_for() -> None:
    with fake_ranks(RANKS):
        assert pieces_of(captured(4096, 4096, dynamic=True), link(1e9, 1e-6)) == 1
        assert pieces_of(captured(4096, 4096, dynamic=True), link(1e9, 1e-6), 2) == 2


def test_leaving_the_pass_out_leaves_everything_whole() -> None:
    with fake_ranks(RANKS):
        module = captured(4096, 4096)
        config = asked(pieces=2, disable_passes=["pieces_by_expert", "pieces_by_token"])
        cut_without_drops(module, config, default_profile("cpu"))
        assert not any(map(is_piece, ops.calls(module.graph, comms.is_all_to_all)))


def test_what_can_not_be_cut_is_an_error_or_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with fake_ranks(RANKS):
        module = captured(64, 16)
        strict, lenient = (asked(pieces=4, pieces_along="experts", strict=strict) for strict in (True, False))
        for config in (strict, lenient):
            object.__setattr__(config, "pieces", 16)  # more than there are local experts, and than an option may be
        with pytest.raises(UnsupportedPatternError, match="fewer experts on each rank than pieces: 8"):
            cut_without_drops(module, strict, default_profile("cpu"))
        cut_without_drops(module, lenient, default_profile("cpu"))
    assert "an exchange stays whole: there are fewer experts" in caplog.text
