# SPDX-License-Identifier: Apache-2.0
"""Collectives by operators of the user, with a launch and a wait, are overlapped as PyTorch's own are.

The operators run over a link that uses its buffers from launch to wait (`tests.late_link`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import farskip_compile
from farskip_compile import ConfigError, declare, declare_op
from farskip_compile.costs import HardwareProfile, PerCollective, load_profile
from farskip_compile.costs.profile import COLLECTIVE_KINDS
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.schedule import custom_collectives
from farskip_compile.verify import held as held_proof
from tests.economy import scalar_kernels
from tests.inductor.custom_operators import IDS, LAYERS, WIDTH, Model, arrived, by_hand, compiled, declare_all, send
from tests.late_link import BufferInFlightError, late_link


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    with late_link(2) as found, scalar_kernels():
        yield found


@pytest.fixture(autouse=True)
def _nothing_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declare, "_declared", {})


@pytest.mark.parametrize("how", ["in two", "with scales", "in one", "somewhere"])
def test_a_model_with_them_is_rewired_and_computes_what_the_form_by_hand_does(how: str, group: Any) -> None:
    declare_all()
    model = Model(how, group.group_name)
    expected = by_hand(model, IDS)
    assert not torch.allclose(expected, model(IDS), atol=1e-2)
    assert torch.equal(compiled(model, inner="eager")(IDS), expected)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(IDS), expected, rtol=0, atol=1e-5)
    (report,) = farskip_compile.reports().schedules[-1:]
    flights = {"in two": 2 * LAYERS, "with scales": 2 * LAYERS}.get(how, 0)
    assert len(report.flights) == flights
    names = {
        "in one": (f"{2 * LAYERS} x farskip_tests::swap",),
        "somewhere": (f"{2 * LAYERS} x farskip_tests::swap_somewhere",),
    }
    assert report.blocking == names.get(how, ())
    assert report.after is not None
    if flights:
        assert report.after.exposed_seconds < report.unscheduled.exposed_seconds  # type: ignore[union-attr]
    launched = {"in two": "send", "with scales": "send_scaled", "in one": "swap"}.get(how)
    assert [one.split()[0] for order in report.orders.values() for one in order] == [launched] * 2 * LAYERS * (
        launched is not None
    )


@pytest.mark.parametrize("how", ["in two", "in one"])
@pytest.mark.parametrize("plan", [{}, {"allow_buffer_reuse": True}])
def test_gradients_and_what_is_in_flight_meanwhile(how: str, plan: dict[str, Any], group: Any) -> None:
    declare_all()
    model = Model(how, group.group_name)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(by_hand(model, IDS).square().sum(), parameters)
    found = torch.autograd.grad(compiled(model, inductor=plan)(IDS).square().sum(), parameters)
    for one, right in zip(found, expected, strict=True):
        torch.testing.assert_close(one, right, rtol=1e-4, atol=1e-4)


def in_place(x: Tensor, y: Tensor, ranks: str) -> tuple[Tensor, Tensor, Tensor]:
    """What is sent is read last by a kernel that Inductor writes in place; there is a product to put in between."""
    sent = x @ x
    flying = send(sent, ranks)
    written = (sent + y).sin()
    return arrived(flying) + 1, written, y @ y @ y @ y + written


@pytest.mark.parametrize("held", [True, False])
def test_what_is_in_flight_is_held_until_the_wait(held: bool, group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    declare_all()
    x, y = torch.randn(WIDTH, WIDTH), torch.randn(WIDTH, WIDTH) / 4
    expected = in_place(x, y, group.group_name)
    if not held:
        monkeypatch.setattr(custom_collectives, "_comes_before", lambda node, other: False)
        monkeypatch.setattr(held_proof, "_in_flight", lambda result, seen: set())
    run = compiled(in_place, connectivity="none", strict=False)
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        if held:
            for one, right in zip(run(x, y, group.group_name), expected, strict=True):
                torch.testing.assert_close(one, right)
        else:
            with pytest.raises(BufferInFlightError):
                run(x, y, group.group_name)


def test_a_wait_that_does_not_hold_what_is_in_flight_is_not_delivered(group: Any, monkeypatch: Any) -> None:
    declare_all()
    monkeypatch.setattr(custom_collectives, "_comes_before", lambda node, other: False)
    caches = torch._inductor.config.patch(force_disable_caches=True)
    with caches, pytest.raises(Exception, match=r"it does not hold .*, which its launch has in flight"):
        compiled(Model("in two", group.group_name))(IDS)


def test_rows_in_8_bits_and_their_scales_are_hidden_together(group: Any) -> None:
    model = Model("in 8 bits", group.group_name)
    expected = by_hand(model, IDS)
    assert torch.equal(compiled(model, inner="eager")(IDS), expected)
    with torch.no_grad():
        found = compiled(model, profile=short_links())(IDS)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)  # a last bit of 3
    report = farskip_compile.reports().schedules[-1]
    assert len(report.flights) == 4 * LAYERS
    assert report.unscheduled is not None
    assert report.unscheduled.exposed_seconds > 0
    assert [one.exposed for one in report.flights] == [0.0] * 4 * LAYERS


def short_links() -> HardwareProfile:
    """An exchange takes as long as a small product does."""
    profile = load_profile("cpu-gloo")
    latency = PerCollective(**dict.fromkeys(COLLECTIVE_KINDS, 2e-6))
    return replace(profile, intra_node=replace(profile.intra_node, latency=latency, step_latency=0.0, correction=None))


def test_without_a_declaration_a_model_is_not_understood(group: Any) -> None:
    with pytest.raises(UnsupportedPatternError, match="farskip_tests::swap"):
        compiled(Model("in one", group.group_name), inner="eager")(IDS)


def test_a_launch_whose_result_is_read_by_what_is_not_its_wait_is_refused(group: Any) -> None:
    declare_op("farskip_tests::send", "exchange", wait="farskip_tests::swap_somewhere", group="ranks")
    model = Model("in two", group.group_name)
    with pytest.raises(Exception, match="nothing waits for it"):
        compiled(model, connectivity="none", kinds={"farskip_tests::arrived": "dense"})(IDS)


def test_a_launch_that_names_no_group_is_refused(group: Any) -> None:
    declare_op("farskip_tests::send", "exchange", wait="farskip_tests::arrived")
    with pytest.raises(Exception, match="none of its parameters is the name of a process group"):
        compiled(Model("in two", group.group_name))(IDS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "dense", "wait": "a::b"}, "only operators that are a reduction or an exchange"),
        ({"kind": "exchange", "wait": "farskip_tests::send"}, "not the name of another operator"),
        ({"kind": "exchange", "wait": "wait"}, "not the name of another operator"),
        ({"kind": "exchange", "group": 3}, "are names"),
    ],
)
def test_what_can_not_be_declared(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        declare_op("farskip_tests::send", **given)
