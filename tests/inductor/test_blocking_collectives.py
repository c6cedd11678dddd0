# SPDX-License-Identifier: Apache-2.0
"""Collectives in one operator keep their place among those of their process group, and the report names them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, fx

import farskip_compile
from farskip_compile import declare, declare_op
from farskip_compile._compat import inductor
from farskip_compile.compiler.inductor_passes import after_fusion
from farskip_compile.errors import VerificationError
from farskip_compile.passes.schedule import graph as in_graph
from farskip_compile.passes.schedule import kernels as of_kernels
from farskip_compile.passes.schedule.custom_collectives import blocking
from farskip_compile.passes.schedule.program import Program, TaskRole
from farskip_compile.verify.kernels import verify_kernels
from tests.economy import scalar_kernels
from tests.inductor.custom_operators import C10D, WIDTH, compiled, swap
from tests.late_link import late_link


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    with late_link(2) as found, scalar_kernels():
        yield found


@pytest.fixture(autouse=True)
def _nothing_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declare, "_declared", {})


@torch.library.custom_op("farskip_tests::swap_", mutates_args=("x",))
def swap_(x: Tensor, group_name: str) -> None:
    x.copy_(swap(x, group_name))


def writes_in_place(x: Tensor, y: Tensor, ranks: str) -> tuple[Tensor, Tensor]:
    """An exchange that blocks between two that do not, and one on which nothing depends."""
    sent, late = x + 1, C10D.all_reduce(y, "sum", ranks)
    swap_(sent, ranks)
    last = C10D.all_reduce(y * 2, "sum", ranks)
    return sent * 2, (C10D.wait_tensor(late) + C10D.wait_tensor(last)) @ y


def test_what_writes_in_place_blocks_too_and_stays_in_its_place(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody declared it: it names its process group."""
    programs: list[Program] = []
    monkeypatch.setattr(in_graph, "list_schedule", noting(programs, in_graph.list_schedule))
    monkeypatch.setattr(of_kernels, "list_schedule", noting(programs, of_kernels.list_schedule))
    x, y = torch.randn(WIDTH, WIDTH), torch.randn(WIDTH, WIDTH)
    expected = writes_in_place(x.clone(), y, group.group_name)
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        found = compiled(writes_in_place, connectivity="none", strict=False)(x, y, group.group_name)
    for one, right in zip(found, expected, strict=True):
        torch.testing.assert_close(one, right)
    report = farskip_compile.reports().schedules[-1]
    assert report.blocking == ("1 x farskip_tests::swap_",)
    assert [one.split()[0] for one in report.orders[group.group_name]] == ["all_reduce", "swap_", "all_reduce"]
    assert len(programs) == 2
    for program in programs:
        first, last = (place for place, task in enumerate(program.tasks) if task.role is TaskRole.LAUNCH)
        between = [task for task in program.tasks if first in task.needs and task.role is TaskRole.COMPUTE]
        assert any(program.tasks.index(task) in program.tasks[last].needs for task in between)


def test_another_order_of_what_blocks_and_a_launch_is_not_delivered(group: Any, monkeypatch: Any) -> None:
    def moved(before: list[Any], after: list[Any]) -> None:
        verify_kernels(before, after)
        launch = next(kernel for kernel in after if inductor.is_launch_kernel(kernel))
        rest = [kernel for kernel in after if kernel is not launch]
        blocks = next(
            place for place, kernel in enumerate(rest) if "swap_" in str(getattr(kernel.node, "op_overload", ""))
        )
        with pytest.raises(VerificationError, match="on the same process group"):
            verify_kernels(before, [*rest[: blocks + 1], launch, *rest[blocks + 1 :]])
        seen.append(launch)

    seen: list[Any] = []
    monkeypatch.setattr(after_fusion, "verify_kernels", moved)
    x, y = torch.randn(WIDTH, WIDTH), torch.randn(WIDTH, WIDTH)
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        compiled(writes_in_place, connectivity="none", strict=False)(x, y, group.group_name)
    assert seen


def noting(programs: list[Program], schedule: Any) -> Any:
    def note(program: Program, *args: Any, **kwargs: Any) -> Any:
        programs.append(program)
        return schedule(program, *args, **kwargs)

    return note


@torch.library.custom_op("farskip_tests::by_columns", mutates_args=())
def by_columns(x: Tensor, group: int) -> Tensor:
    """Of another kind of group."""
    return x * group


@torch.library.custom_op("farskip_tests::swap_on", mutates_args=())
def swap_on(x: Tensor, group_name: str) -> Tensor:
    """On a group that a library knows by a name of its own."""
    return swap(x, {"ep:0": "0"}[group_name])


by_columns.register_fake(lambda x, group: torch.empty_like(x))
swap_on.register_fake(lambda x, group_name: torch.empty_like(x))


def on_groups_of_others(x: Tensor, y: Tensor, ranks: str) -> tuple[Tensor, Tensor]:
    late = C10D.all_reduce(y, "sum", ranks)
    return swap_on(by_columns(x, 3), "ep:0") + 1, C10D.wait_tensor(late) @ y


@pytest.mark.parametrize("declared", [False, True])
def test_groups_that_torch_does_not_know_are_no_reason_to_fail(declared: bool, group: Any) -> None:
    """Nobody could compare orders on them: those on others are announced."""
    if declared:
        declare_op("farskip_tests::swap_on", "exchange")
    x, y = torch.randn(WIDTH, WIDTH), torch.randn(WIDTH, WIDTH)
    run = compiled(on_groups_of_others, connectivity="none", strict=False)
    with torch.no_grad():
        found = run(x, y, group.group_name)
    for one, right in zip(found, on_groups_of_others(x, y, group.group_name), strict=True):
        torch.testing.assert_close(one, right)
    report = farskip_compile.reports().schedules[-1]
    assert report.blocking == ("1 x farskip_tests::swap_on",)
    assert list(report.orders) == [group.group_name]


def test_an_operator_that_names_its_group_is_not_taken_for_compute() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    for _ in range(2):
        x = graph.call_function(torch.ops.symm_mem.one_shot_all_reduce.default, (x, "sum", "0"))
    graph.call_function(torch.ops.aten.sin.default, (x,))
    assert blocking(graph) == ("2 x symm_mem::one_shot_all_reduce",)
