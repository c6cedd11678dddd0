"""Collectives by operators of the user: with a launch and a wait they are overlapped as PyTorch's own are; one that
blocks stays in its place, and the report names it.

The operators run over a link that uses its buffers from launch to wait (`tests.late_link`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.nn import functional as F

import farskip_compile
from farskip_compile import (
    ConfigError,
    UnsupportedPatternError,
    VerificationError,
    declare,
    declare_op,
    inductor_passes,
)
from farskip_compile._compat import inductor
from farskip_compile.costs import COLLECTIVE_KINDS, HardwareProfile, PerCollective, load_profile
from farskip_compile.passes.schedule import custom_collectives
from farskip_compile.passes.schedule import graph as in_graph
from farskip_compile.passes.schedule import kernels as of_kernels
from farskip_compile.passes.schedule.custom_collectives import blocking
from farskip_compile.passes.schedule.program import Program, Role
from farskip_compile.verify import held as held_proof
from farskip_compile.verify.kernels import verify_kernels
from tests.economy import scalar_kernels
from tests.late_link import BufferInFlightError, late_link

WIDTH, VOCABULARY, LAYERS = 16, 20, 3
IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
C10D, FLOAT8 = torch.ops._c10d_functional, torch.float8_e4m3fn


@torch.library.custom_op("farskip_tests::send", mutates_args=())
def send(x: Tensor, ranks: str) -> Tensor:
    half = x.shape[0] // 2
    return C10D.all_to_all_single(x, [half, half], [half, half], ranks)


@torch.library.custom_op("farskip_tests::send_scaled", mutates_args=())
def send_scaled(x: Tensor, scales: Tensor, ranks: str) -> tuple[Tensor, Tensor]:
    return send(x, ranks), send(scales, ranks)


@torch.library.custom_op("farskip_tests::arrived", mutates_args=())
def arrived(x: Tensor) -> Tensor:
    return C10D.wait_tensor(x).clone()


@torch.library.custom_op("farskip_tests::swap", mutates_args=())
def swap(x: Tensor, ranks: str) -> Tensor:
    return arrived(send(x, ranks))


@torch.library.custom_op("farskip_tests::swap_somewhere", mutates_args=())
def swap_somewhere(x: Tensor) -> Tensor:
    """As those libraries do whose group is a handle elsewhere."""
    return arrived(send(x, dist.group.WORLD.group_name))  # type: ignore[union-attr]


for operator in (send, swap):
    operator.register_fake(lambda x, ranks: torch.empty_like(x))
for operator in (arrived, swap_somewhere):
    operator.register_fake(lambda x: torch.empty_like(x))
send_scaled.register_fake(lambda x, scales, ranks: (torch.empty_like(x), torch.empty_like(scales)))


def _sent_back(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return arrived(send(gradient.contiguous(), ctx.ranks)), None


def _remember(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.ranks = inputs[1]


send.register_autograd(_sent_back, setup_context=_remember)
swap.register_autograd(_sent_back, setup_context=_remember)
arrived.register_autograd(lambda ctx, gradient: gradient)


def _all_to_all(x: Tensor, ranks: str) -> Tensor:
    half = x.shape[0] // 2
    return C10D.all_to_all_single(x, [half, half], [half, half], ranks)


class Layer(nn.Module):
    """Tokens are mixed; then experts of this and the other rank."""

    def __init__(self, how: str, ranks: str) -> None:
        super().__init__()
        self.how, self.ranks = how, ranks
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.router = nn.Linear(WIDTH, 4)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x)[None, None].chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True)[0, 0])

    def exchange(self, x: Tensor) -> Tensor:
        if self.how == "in two":
            return arrived(send(x, self.ranks))
        if self.how == "in 8 bits":  # by PyTorch's own collectives
            scales = x.abs().amax(-1, keepdim=True) / 256
            rows, their_scales = (_all_to_all(one, self.ranks) for one in ((x / scales).to(FLOAT8), scales))
            return C10D.wait_tensor(rows).to(x.dtype) * C10D.wait_tensor(their_scales)
        if self.how == "with scales":
            scales = x.abs().amax(-1, keepdim=True)
            rows, their_scales = send_scaled(x / scales, scales, self.ranks)
            return arrived(rows) * arrived(their_scales)
        return swap(x, self.ranks) if self.how == "in one" else swap_somewhere(x)

    def experts(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).topk(1)
        rows = x[torch.argsort(chosen[:, 0], stable=True)]
        done = self.exchange(self.down(F.silu(self.up(self.exchange(rows)))))
        return done[torch.argsort(torch.argsort(chosen[:, 0], stable=True))] * weight


class Model(nn.Module):
    def __init__(self, how: str, ranks: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(how, ranks) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * LAYERS + 1))
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for number, layer in enumerate(self.layers):
            x = x + layer.attention(self.norms[2 * number](x))
            x = x + layer.experts(self.norms[2 * number + 1](x))
        return self.head(self.norms[-1](x))


def by_hand(model: Model, ids: Tensor) -> Tensor:
    """Attention reads the stream without the experts before it, and experts without the attention before them."""
    without_last = x = model.embedding(ids)
    for number, layer in enumerate(model.layers):
        attention = layer.attention(model.norms[2 * number](without_last))
        experts = layer.experts(model.norms[2 * number + 1](x))
        without_last = x + attention
        x = without_last + experts
    return model.head(model.norms[-1](x))


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    with late_link(2) as found, scalar_kernels():
        yield found


@pytest.fixture(autouse=True)
def _nothing_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declare, "_declared", {})


def declare_all() -> None:
    declare_op("farskip_tests::send", "exchange", wait="farskip_tests::arrived", group="ranks")
    declare_op("farskip_tests::send_scaled", "exchange", wait="farskip_tests::arrived", group="ranks")
    declare_op("farskip_tests::swap", "exchange", group="ranks")
    declare_op("farskip_tests::swap_somewhere", "exchange")


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend=farskip_compile.backend(check_order=False, **options), fullgraph=True)


@pytest.mark.parametrize("how", ["in two", "with scales", "in one", "somewhere"])
def test_a_model_with_them_is_rewired_and_computes_what_the_form_by_hand_does(how: str, group: Any) -> None:
    declare_all()
    model = Model(how, group.group_name)
    expected = by_hand(model, IDS)
    assert not torch.allclose(expected, model(IDS), atol=1e-2)
    assert torch.equal(compiled(model, inner="eager")(IDS), expected)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(IDS), expected, rtol=0, atol=1e-5)
    (report,) = farskip_compile.last_schedules()[-1:]
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
    report = farskip_compile.last_schedules()[-1]
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
    report = farskip_compile.last_schedules()[-1]
    assert report.blocking == ("1 x farskip_tests::swap_",)
    assert [one.split()[0] for one in report.orders[group.group_name]] == ["all_reduce", "swap_", "all_reduce"]
    assert len(programs) == 2
    for program in programs:
        first, last = (place for place, task in enumerate(program.tasks) if task.role is Role.LAUNCH)
        between = [task for task in program.tasks if first in task.needs and task.role is Role.COMPUTE]
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
    monkeypatch.setattr(inductor_passes, "verify_kernels", moved)
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
    report = farskip_compile.last_schedules()[-1]
    assert report.blocking == ("1 x farskip_tests::swap_on",)
    assert list(report.orders) == [group.group_name]


def test_an_operator_that_names_its_group_is_not_taken_for_compute() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    for _ in range(2):
        x = graph.call_function(torch.ops.symm_mem.one_shot_all_reduce.default, (x, "sum", "0"))
    graph.call_function(torch.ops.aten.sin.default, (x,))
    assert blocking(graph) == ("2 x symm_mem::one_shot_all_reduce",)


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
