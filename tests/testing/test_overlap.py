# SPDX-License-Identifier: Apache-2.0
"""`assert_overlappable`, and the terms by which it knows the collectives of routed experts, forward and backward."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed._functional_collectives as funcol
import torch.utils.checkpoint
from torch import nn
from torch._inductor.graph import GraphLowering

from farskip_compile import ConfigError, FarSkipConfig
from farskip_compile.compiler.inductor_passes import after_fusion
from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.models import build
from farskip_compile.passes.schedule import kernels as schedule_kernels
from farskip_compile.passes.schedule.timeline import flights
from farskip_compile.testing import assert_overlappable
from tests.graphs import Layer, MoE, Stack
from tests.graphs import ids as few_ids
from tests.inductor.test_generated_order import SMALL, parallel, quick_link
from tests.testing.texts import failure_of

IDS = torch.randint(0, 32, (1, 16), generator=torch.Generator().manual_seed(0))
SHORT = 1e-7
"""Seconds; less than any product of these models takes."""
ENOUGH = 5e-6
"""What each collective has in the rewired models."""
STANDARD = 6e-6
"""More than all compute together that standard wiring leaves beside its collectives: so whichever gets it, is short."""


def config(**options: Any) -> FarSkipConfig:
    return FarSkipConfig(profile=quick_link(), **options)


def model_in(layout: str, group: Any, name: str = "mixtral", **more: Any) -> nn.Module:
    return build(name, parallel=parallel(layout, group), **{**SMALL, **more}).train()


def test_rewired_models_have_compute_for_each_collective(two_ranks: Any) -> None:
    """In training forward and backward; nothing runs, and nothing is built."""
    model = model_in("padded", two_ranks)
    with (
        mock.patch("torch._inductor.codecache.PyCodeCache.load_by_key_path", side_effect=AssertionError),
        mock.patch("torch._inductor.codecache.CppCodeCache.load_async", side_effect=AssertionError),
    ):
        schedules = assert_overlappable(model, IDS, at_least=ENOUGH, config=config())
    assert [one.phase for one in schedules] == ["forward", "backward"]
    for schedule, terms in zip(schedules, ("r0 r0 r1 r1", "r1 r1 r0 r0"), strict=True):
        assert [flight.terms for flight in schedule.flights] == [(term,) for term in terms.split()]
        assert schedule.level == "kernels"
        assert all(flight.compute >= ENOUGH and flight.exposed == 0.0 for flight in schedule.flights)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert GraphLowering.compile_to_module.__name__ == "compile_to_module", "from here on Inductor builds again"


def test_in_evaluation_the_inference_graph_counts(two_ranks: Any) -> None:
    """And a compiled model is asserted with its own profile."""
    model = model_in("padded", two_ranks)
    compiled = torch.compile(model, backend="farskip", options={"profile": quick_link()})
    (schedule,) = assert_overlappable(model.eval(), IDS, at_least=ENOUGH, config=config())
    assert schedule.phase == "inference"
    assert assert_overlappable(compiled.train(), IDS, at_least=ENOUGH, backward=False) == (schedule,)


def test_standard_wiring_is_seen_to_hide_little(two_ranks: Any) -> None:
    model = model_in("padded", two_ranks)
    text = failure_of(assert_overlappable, model, IDS, at_least=STANDARD, config=config(connectivity="none"))
    lines = text.splitlines()
    assert " ".join(lines[:2]) == (
        "4 of 4 collectives of routed experts in the forward graph have less than 6e-06 s of compute between their "
        "launch and their wait"
    )
    assert lines[2] == "  connectivity 'none', all layers; estimates for kernels, profile cpu-gloo"
    assert lines[3].split() == ["launch", "of", "on", "the", "wire", "compute", "exposed"]
    assert [line.split()[0] + line.split()[2] for line in lines[4:8]] == ["!r0", "!r0", "!r1", "!r1"]
    assert sum(float(line.split()[5]) for line in lines[4:8]) < STANDARD
    assert lines[8:10] == ["  moe.0 can run beside nothing", "  moe.1 can run beside nothing"]
    assert "ends=False" not in text


def test_an_order_that_waits_at_once_is_seen(two_ranks: Any) -> None:
    """Rewired, and compiled as if it were scheduled, but each wait follows its launch: as without scheduling."""
    true = schedule_kernels.schedule_kernels

    def wait_at_once(kernels: Any, *args: Any) -> Any:
        _, schedule = true(kernels, *args)
        program = overlap_program(kernels, *args)
        order = as_written(program)
        return [kernels[i] for i in order], dataclasses.replace(schedule, order=order, flights=flights(program, order))

    with (
        mock.patch.object(after_fusion, "schedule_kernels", wait_at_once),
        mock.patch.object(after_fusion, "verify_kernels"),
    ):
        text = failure_of(
            assert_overlappable, model_in("padded", two_ranks).eval(), IDS, at_least=SHORT, config=config()
        )
    assert "4 of 4 collectives" in text


def overlap_program(kernels: Any, estimates: Any, limits: Any, inputs: int) -> Any:
    from farskip_compile.passes.schedule.from_kernels import read_kernels

    return read_kernels(kernels, estimates, inputs)


def as_written(program: Any) -> tuple[int, ...]:
    """Each launch as late as its wait allows."""
    order: list[int] = []
    done: set[int] = set()

    def place(index: int) -> None:
        if index in done:
            return
        task = program.tasks[index]
        for need in task.needs:
            if need != task.launch:
                place(need)
        if task.launch >= 0:
            place(task.launch)
        done.add(index)
        order.append(index)

    for index, task in enumerate(program.tasks):
        if task.role.value != "launch":
            place(index)
    for index in range(len(program.tasks)):
        place(index)
    return tuple(order)


def test_what_can_not_be_asserted_fails(two_ranks: Any) -> None:
    model = model_in("padded", two_ranks, layers=("moe",))
    text = failure_of(assert_overlappable, model, IDS, at_least=SHORT, config=config(schedule=False))
    assert "schedule=False, so that nothing is scheduled" in " ".join(text.split())
    text = failure_of(assert_overlappable, model, IDS, at_least=SHORT, config=FarSkipConfig(inner="eager"))
    assert "inner='eager'" in text
    whole = build("mixtral", **{**SMALL, "layers": ("moe",)}).eval()
    text = failure_of(assert_overlappable, whole, IDS, at_least=SHORT, config=config())
    assert "the inference graph has no collectives" in text
    text = failure_of(
        assert_overlappable, model.requires_grad_(False), IDS, at_least=SHORT, backward=True, config=config()
    )
    assert "the forward graph has no collectives" in text
    assert "its parameters must require gradients" in " ".join(text.split())
    dense = model_in("tp", two_ranks, layers=("dense", "dense"))
    assert "DenseModelError" in failure_of(assert_overlappable, dense, IDS, at_least=SHORT, config=config())
    with pytest.raises(ConfigError):
        assert_overlappable(model, IDS, at_least=0.0)


class AttentionReduced(nn.Module):
    """Only the attention communicates."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for layer in model.layers:
            attention = layer.attention
            attention.register_forward_hook(
                lambda _, __, out: funcol.all_reduce(out, "sum", torch.distributed.group.WORLD)
            )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids)


@pytest.mark.usefixtures("two_ranks")
def test_collectives_of_others_do_not_count() -> None:
    model = AttentionReduced(Stack(lambda: Layer(MoE()))).eval()
    text = failure_of(assert_overlappable, model, few_ids(), at_least=SHORT, config=config())
    assert "the routed experts have none of the inference graph's collectives (2)" in " ".join(text.split())
    assert "a0" in text


def test_without_a_process_group() -> None:
    text = failure_of(assert_overlappable, build("deepseek_v3", **SMALL), IDS, at_least=SHORT)
    assert "torch.distributed is not initialised" in text
    assert "fake_ranks" in text


def test_the_ends_may_be_left_out() -> None:
    """Eight ranks send more, and without shared experts little is left for the last combine."""
    enough = 1e-5  # the others have 17 us each
    with fake_ranks(8, rank=3) as group:
        assert (group.size(), group.rank()) == (8, 3)
        model = model_in("padded", group, experts=8).eval()
        text = failure_of(assert_overlappable, model, IDS, at_least=enough, config=config())
        assert text.startswith("1 of 4 collectives")
        assert "moe.1 can run beside a1" in text
        assert "ends=False" in text
        assert_overlappable(model, IDS, at_least=enough, config=config(), ends=False)
        with pytest.raises(ConfigError, match="initialised already"), fake_ranks(2):
            pass
    assert not torch.distributed.is_initialized()
    with pytest.raises(ConfigError, match="no rank 2"), fake_ranks(2, rank=2):
        pass
