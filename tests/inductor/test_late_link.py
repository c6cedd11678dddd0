# SPDX-License-Identifier: Apache-2.0
"""No buffer in flight is written to, or read early, under every allocation plan: links that use theirs to the last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import farskip_compile
from farskip_compile.models import ParallelConfig, build
from tests.economy import scalar_kernels
from tests.late_link import BufferInFlightError, late_link

C10D = torch.ops._c10d_functional
PLANS: dict[str, dict[str, Any]] = {
    "as we ask": {},
    "reused": {"allow_buffer_reuse": True},
    "one pool": {"memory_planning": True, "allow_buffer_reuse": True},
    "nothing in place": {"inplace_buffers": False},
}
"""How Inductor may give the memory of one buffer to the next. By default we ask it not to."""


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    with late_link(2) as found:
        yield found


@torch.library.custom_op("farskip_tests::add_to", mutates_args=("x",))
def add_to(x: torch.Tensor, y: torch.Tensor) -> None:
    x.add_(y)


@torch.library.custom_op("farskip_tests::add_to_both", mutates_args=("xs",))
def add_to_both(xs: list[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    for x in xs:
        x.add_(y)
    return y + 1


@add_to_both.register_fake
def _(xs: list[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(y)


def by_custom_operator(sent: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    z = sent.clone()
    add_to(z, y)
    return z


def by_custom_operator_on_a_view(sent: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    z = sent.clone()
    add_to(z[2:], y[2:])
    return z


def by_custom_operator_on_a_list(sent: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    z = sent.clone()
    return add_to_both([z, y * 2], y) + z


def by_index_put(sent: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.index_put(sent, (torch.arange(2),), y[:2])


def by_foreach(sent: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch._foreach_add([sent, sent * 2], [y, y])[0]


def by_a_second_collective(sent: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return C10D.wait_tensor(C10D.all_reduce(sent, "sum", dist.group.WORLD.group_name))


WRITES = [
    by_custom_operator,
    by_custom_operator_on_a_view,
    by_custom_operator_on_a_list,
    by_index_put,
    by_foreach,
    by_a_second_collective,
]


def program(write: Any) -> Any:
    """What is sent is written to besides; there are products to put under the exchange."""

    def run(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sent = x * 2
        name = dist.group.WORLD.group_name
        came = C10D.wait_tensor(C10D.all_to_all_single(sent, [4, 4], [4, 4], name))
        written = write(sent, y)
        return came + 1, written, (w @ w) @ w + written.sum()

    return run


INPUTS = (torch.ones(8, 8), torch.eye(64), torch.full((8, 8), 100.0))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.usefixtures("group")
def test_what_is_sent_is_not_written_to_before_it_has_landed(write: Any) -> None:
    expected = program(write)(*INPUTS)
    backend = farskip_compile.backend(connectivity="none", check_order=False, strict=False)
    with torch.no_grad(), scalar_kernels():
        found = torch.compile(program(write), backend=backend, fullgraph=True)(*INPUTS)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("group")
def test_a_write_in_flight_is_seen() -> None:
    """Inductor by itself lets the operator write over what is in flight."""
    with torch.no_grad(), scalar_kernels(), pytest.raises(BufferInFlightError, match="an all-to-all sends"):
        torch.compile(program(by_custom_operator), fullgraph=True)(*INPUTS)


@pytest.mark.parametrize("plan", ["reused", "one pool"])
def test_a_buffer_that_is_reused_in_flight_is_seen(plan: str, group: dist.ProcessGroup, monkeypatch: Any) -> None:
    """If Inductor did not know that a wait still reads what the launch was given."""
    from torch._inductor import ir

    monkeypatch.setattr(ir._WaitKernel, "get_volatile_reads", lambda self: [])
    with torch._inductor.config.patch(force_disable_caches=True), pytest.raises(BufferInFlightError):
        train("padded", plan, group)


def gradients(model: nn.Module, run: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output = run(ids)
    output.square().sum().backward()
    return {"output": output.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("mode", ["padded", "dropless", "allgather", "tp"])
def test_training_with_every_plan(mode: str, plan: str, group: dist.ProcessGroup) -> None:
    found, expected = train(mode, plan, group)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def train(mode: str, plan: str, group: dist.ProcessGroup) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Output and gradients under Inductor, by this plan of its memory, and in eager."""
    how = {"tp_group": group} if mode == "tp" else {"ep_group": group, "ep_mode": mode}
    if mode == "padded":
        how["capacity_factor"] = 2.0
    parallel = ParallelConfig(**how)
    model = build("deepseek_v3", layers=("moe", "moe"), vocab_size=32, dtype=torch.float64, parallel=parallel)
    ids = torch.arange(16).view(2, 8)
    options = {"connectivity": "full", "check_order": False}
    eager = torch.compile(model, backend=farskip_compile.backend(inner="eager", **options), fullgraph=True)
    expected = gradients(model, eager, ids)
    torch.compiler.reset()
    flights = group.flights
    compiled = torch.compile(model, backend=farskip_compile.backend(inductor=PLANS[plan], **options), fullgraph=True)
    with scalar_kernels():
        found = gradients(model, compiled, ids)
    assert group.flights > flights
    return found, expected
