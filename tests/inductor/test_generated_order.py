# SPDX-License-Identifier: Apache-2.0
"""What Inductor generates: launch, then the compute that should hide it, then the wait, forward and backward."""

from __future__ import annotations

import ast
import dataclasses
import re
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import fx
from torch._inductor.dependencies import WeakDep
from torch._inductor.graph import GraphLowering

from farskip_compile._compat.collectives import all_to_all_single
from farskip_compile._compat.costs import HINTS_REACH_MEMORY
from farskip_compile._compat.inductor import PINNED, PRE_FUSION, CustomSchedulerPass, scheduling_options
from farskip_compile.compiler.config import FarSkipConfig, resolve
from farskip_compile.compiler.inductor_passes import after_fusion, before_fusion, post_grad
from farskip_compile.compiler.inductor_passes.after_fusion import KernelPass
from farskip_compile.compiler.inductor_passes.plan import Plan
from farskip_compile.compiler.inductor_passes.post_grad import PostGradPass
from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.costs import HardwareProfile, PerCollective, load_profile
from farskip_compile.costs.profile import COLLECTIVE_KINDS
from farskip_compile.models import MODELS, ParallelConfig, build
from farskip_compile.passes.schedule import kernels
from farskip_compile.passes.schedule.pins import pin_products
from farskip_compile.records.announcement import Announcement
from farskip_compile.records.schedule import ScheduleReport

SMALL: dict[str, Any] = {"vocab_size": 32, "layers": ("moe", "moe"), "hidden_size": 64}
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")


def steps(code: str) -> list[str]:
    """What the generated program does, in order: collectives by name, `wait`, products, `kernel` for the rest."""
    found = []
    body = code[code.index("def call(") :]
    for line in body[: body.index("return (")].splitlines():
        if collective := re.search(r"_c10d_functional\.(\w+)\.default\(", line):
            found.append("wait" if collective.group(1) == "wait_tensor" else collective.group(1))
        elif "farskip.announce" in line:
            found.append("announce")
        elif product := re.search(r"extern_kernels\.(\w+)\(|aten\.(_scaled_dot\w+|_flash\w+)\.default\(", line):
            found.append(product.group(1) or "attention")
        elif re.match(r"\s*cpp_fused\w*\(", line):
            found.append("kernel")
    return found


def hiding_steps(program: list[str]) -> list[int]:
    """For each collective, how many kernels and products run while it is in flight; waits come in launch order."""
    counts: list[int] = []
    flying: list[int] = []
    for step in program:
        if step == "wait":
            flying.pop(0)
        elif step in ("kernel", "attention", *PRODUCTS):
            for number in flying:
                counts[number] += 1
        elif step != "announce":
            flying.append(len(counts))
            counts.append(0)
    assert not flying
    return counts


def programs(model: torch.nn.Module, **options: Any) -> list[list[str]]:
    """Generated forward and backward program; nothing is built or run."""
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"profile": quick_link(), **options})
    with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
        codes = get_code_of(compiled, torch.randint(0, 32, (1, 16)))
    return [steps(code) for code in codes]


def get_code_of(compiled: Any, *inputs: torch.Tensor, graphs: int = 2) -> list[str]:
    """The programs that Inductor generates, forward first."""
    codes: list[str] = []

    def keep(self: GraphLowering) -> Any:
        codes.append(self.codegen()[0].value)
        return mock.Mock(call=lambda args: None)

    with (
        mock.patch.object(GraphLowering, "compile_to_module", keep),
        # what an earlier compile left generates nothing; and no kernel is run, so none needs to be vectorized
        torch._inductor.config.patch({"fx_graph_cache": False, "cpp.simdlen": 1}),
    ):
        torch.compiler.reset()
        try:
            compiled(*inputs)
        except Exception:  # there is nothing to run; but what keeps code from being generated is raised
            if len(codes) < graphs:
                raise
    assert len(codes) == graphs
    return codes if "tangents" not in codes[0] else codes[::-1]


def quick_link() -> HardwareProfile:
    """A CPU whose network takes about as long as half of an attention in these tiny models."""
    cpu = load_profile("cpu-gloo")
    link = dataclasses.replace(
        cpu.inter_node,
        bandwidth=2e9,
        step_latency=0.0,
        latency=PerCollective(**dict.fromkeys(COLLECTIVE_KINDS, 0.0)),
    )
    return dataclasses.replace(cpu, intra_node=link, inter_node=link)


def parallel(layout: str, group: Any) -> ParallelConfig:
    return ParallelConfig(tp_group=group) if layout == "tp" else ParallelConfig(ep_group=group, ep_mode=layout)  # type: ignore[arg-type]


LAYOUTS = {"deepseek_v3": "padded", "llama4": "tp", "mixtral": "allgather", "qwen3_moe": "dropless"}


def test_every_model_has_its_turn() -> None:
    assert set(LAYOUTS) == set(MODELS)


class Theirs(CustomSchedulerPass):
    """A user's pass before fusion."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, nodes: list[Any]) -> list[Any]:
        self.seen.append(len(nodes))
        return nodes

    def uuid(self) -> str:
        return "theirs"


@dataclasses.dataclass
class Watched:
    """One compile of DeepSeek-V3 with padded exchanges, and what was noted on the way."""

    theirs: Theirs = dataclasses.field(default_factory=Theirs)
    grown: list[bool] = dataclasses.field(default_factory=list)
    """For each graph, whether pins made ancestors grow."""
    wrong: int = 0
    """Graphs whose ancestors were not those that Inductor computes."""
    left: list[WeakDep] = dataclasses.field(default_factory=list)
    """Weak dependencies that are there when kernels are ordered."""
    programs: list[list[str]] = dataclasses.field(default_factory=list)

    def pin(self, kernels: list[Any]) -> None:
        """Pin; only the ancestors that grow are updated, here all are computed anew."""
        before = {kernel: set(kernel.ancestors) for kernel in kernels}
        pin_products(kernels)
        updated = {kernel: set(kernel.ancestors) for kernel in kernels}
        kernels[0].scheduler.compute_ancestors()
        self.wrong += updated != {kernel: set(kernel.ancestors) for kernel in kernels}
        self.grown.append(updated != before)

    def order(self, given: list[Any], *args: Any) -> Any:
        """Order kernels."""
        self.left.extend(dep for kernel in given for dep in kernel.unmet_dependencies if isinstance(dep, WeakDep))
        return ORDER(given, *args)


ORDER = kernels.schedule_kernels


one_worker = pytest.mark.xdist_group("watched")
"""Workers share no fixtures."""


@pytest.fixture(scope="module")
def watched() -> Watched:
    found = Watched()
    with (
        fake_ranks(2) as group,
        mock.patch.object(before_fusion, "pin_products", found.pin),
        mock.patch.object(after_fusion, "schedule_kernels", found.order),
    ):
        model = build("deepseek_v3", parallel=parallel(LAYOUTS["deepseek_v3"], group), **SMALL)
        found.programs = programs(model, inductor={PRE_FUSION: found.theirs})
    torch.compiler.reset()
    return found


@pytest.mark.parametrize(("name", "layout"), [item for item in LAYOUTS.items() if item[0] != "deepseek_v3"])
def test_rewired_models_hide_collectives_forward_and_backward(name: str, layout: str, two_ranks: Any) -> None:
    assert_hidden(programs(build(name, parallel=parallel(layout, two_ranks), **SMALL)))


@one_worker
def test_a_watched_model_hides_collectives_too(watched: Watched) -> None:
    assert_hidden(watched.programs)


def test_a_ladder_hides_the_reductions_of_a_dense_model(two_ranks: Any) -> None:
    model = build("llama4", parallel=parallel("tp", two_ranks), **{**SMALL, "layers": ("dense",) * 3})
    assert_hidden(programs(model, connectivity="ladder"))
    plain, _ = programs(model, connectivity="none")
    assert not any(hiding_steps(plain))


def assert_hidden(found: list[list[str]]) -> None:
    for phase, program in zip(("forward", "backward"), found, strict=True):
        assert program[0] == "announce"
        hidden = hiding_steps(program)
        assert sum(count > 0 for count in hidden) >= len(hidden) / 2, (phase, hidden, program)


def test_without_a_schedule_each_launch_stands_next_to_its_wait(two_ranks: Any) -> None:
    """The difference that scheduling makes: rewiring alone hides nothing in the forward graph."""
    model = build("deepseek_v3", parallel=parallel("padded", two_ranks), **SMALL)
    program, _ = programs(model, schedule=False)
    assert "announce" not in program
    assert hiding_steps(program) == [0] * 4, program


def test_weight_gradients_hide_collectives_of_the_plain_model(two_ranks: Any) -> None:
    """Under `none` the backward graph has more to hide collectives with than the forward graph."""
    model = build("qwen3_moe", parallel=parallel("padded", two_ranks), **SMALL)
    forward, backward = programs(model, connectivity="none")
    hidden = hiding_steps(backward)
    assert sum(hidden) > sum(hiding_steps(forward))
    assert sum(count > 0 for count in hidden) >= len(hidden) / 2


@one_worker
def test_a_pass_of_the_user_before_fusion_runs_too(watched: Watched) -> None:
    assert len(watched.theirs.seen) == 2
    assert any(hiding_steps(watched.programs[0])), "and ours"
    plan = Plan(config=resolve(FarSkipConfig()), profile=quick_link())

    def key(theirs: Any) -> Any:
        found = scheduling_options({PRE_FUSION: theirs}, KernelPass(plan, "x"), pin_products, "x")[PRE_FUSION]
        return found.uuid() if isinstance(found, CustomSchedulerPass) else None

    assert key(Theirs()) == ("x", "theirs")
    assert key(None) == ("x",)
    assert key(lambda nodes: nodes) is None, "what has no identity can't be cached"


@one_worker
def test_pins_are_among_the_ancestors_by_which_inductor_knows_cycles(watched: Watched) -> None:
    assert watched.wrong == 0
    assert watched.grown == [True, True]


@one_worker
def test_no_pin_is_left_when_kernels_are_ordered(watched: Watched) -> None:
    """Neither ours of products, nor those of waits, which Inductor names after the operation that they are for."""
    assert not [dep for dep in watched.left if dep.mutating_buf == PINNED or dep.mutating_buf.startswith("op")]


def test_a_group_of_other_ranks_is_refused(two_ranks: Any) -> None:
    alone = dist.new_group([0])
    model = build("deepseek_v3", parallel=parallel("padded", two_ranks), **SMALL)
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"ep_group": alone})
    with pytest.raises(Exception, match="no all-to-all of the model is among just these"):
        compiled(torch.randint(0, 32, (1, 16)))


def test_deterministic_mode_is_refused_where_collectives_would_be_ordered(two_ranks: Any) -> None:
    """Inductor calls no pass on kernels in it, so that nothing would be ordered or checked, and nobody told."""
    options = {"inductor": {"deterministic": True}}
    ids = torch.randint(0, 32, (1, 16))
    model = build("deepseek_v3", parallel=parallel("padded", two_ranks), **SMALL)
    with pytest.raises(Exception, match="Inductor is told to be deterministic"), torch.no_grad():
        torch.compile(model, backend="farskip", fullgraph=True, options=options)(ids)
    torch.compiler.reset()
    options["schedule"] = False
    with torch.no_grad():
        get_code_of(torch.compile(model, backend="farskip", fullgraph=True, options=options), ids, graphs=1)


def reports(model: torch.nn.Module, **options: Any) -> list[ScheduleReport]:
    """What the generated programs announce."""
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"profile": quick_link(), **options})
    with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
        return reports_in(get_code_of(compiled, torch.randint(0, 32, (1, 16))))


def reports_in(codes: list[str]) -> list[ScheduleReport]:
    texts = [re.search(r"farskip\.announce\.default\((.*)\)", code) for code in codes]
    return [Announcement.from_text(ast.literal_eval(text.group(1))).report for text in texts if text]


def test_reports_say_what_was_gained_and_keep_the_limit_on_memory(two_ranks: Any) -> None:
    model = build("deepseek_v3", parallel=parallel("padded", two_ranks), **SMALL)
    own = dist.new_group([0, 1])
    found = reports(model, memory_increase=0.02, ep_group=own)
    assert [report.phase for report in found] == ["forward", "backward"]
    for report in found:
        assert report.level == "kernels"
        assert set(report.orders) == {own.group_name}  # all-to-alls are on a group of their own
        assert report.unscheduled is not None
        assert report.before is not None
        assert report.after is not None
        assert report.after.exposed_seconds <= report.before.exposed_seconds
        assert report.after.exposed_seconds < report.unscheduled.exposed_seconds
        least = min(report.before.peak_bytes, report.unscheduled.peak_bytes)
        assert report.after.peak_bytes <= max(1.02 * least, report.before.peak_bytes)
        assert f"peak memory {report.after.peak_bytes / least - 1:+.1%}" in report.summary()
        assert report.after.in_flight_bytes > 0
        assert "exposed communication" in report.summary()
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    assert found[0].before is not None
    assert found[0].before.peak_bytes > parameters, "what is given counts, too"


def test_scheduling_begins_with_the_order_that_is_written(two_ranks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor's own moves nodes towards what reads them, and so away from what they read: results wait for longer."""
    distances = []
    schedule = post_grad.schedule_post_grad

    def look(graph: fx.Graph, *others: Any) -> Any:
        place = {node: number for number, node in enumerate(graph.nodes)}
        called = [node for node in graph.nodes if node.op == "call_function" and node.users]
        distances.append(sum(min(place[user] for user in node.users) - place[node] for node in called))
        return schedule(graph, *others)

    monkeypatch.setattr(post_grad, "schedule_post_grad", look)
    model = build("deepseek_v3", parallel=parallel("dropless", two_ranks), **{**SMALL, "layers": ("moe", "moe")})
    for theirs in ({}, {"reorder_for_locality": True}):
        options = {"profile": quick_link(), "connectivity": "full", "inductor": theirs}
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
        with torch.no_grad():
            get_code_of(compiled, torch.randint(0, 32, (2, 64)), graphs=1)
    assert 1.2 * distances[0] < distances[1]


def test_the_fullest_rank_counts_before_and_after_fusion(two_ranks: Any) -> None:
    """Routing without drops: its experts' rows are sent, computed and held."""
    model = build("deepseek_v3", parallel=parallel("dropless", two_ranks), **{**SMALL, "layers": ("moe",)})
    for even, uneven in zip(reports(model), reports(model, load_imbalance=2.0), strict=True):
        for one, other in ((even.unscheduled, uneven.unscheduled), (even.after, uneven.after)):
            assert one is not None
            assert other is not None
            assert other.communication_seconds > 1.5 * one.communication_seconds
            assert one.compute_seconds < other.compute_seconds
            assert one.peak_bytes < other.peak_bytes or not HINTS_REACH_MEMORY


def fused_with_what_hides_it(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What is sent and what follows the product read one tensor: Inductor would make one kernel of the two."""
    received = all_to_all_single(x.sin(), None, None, dist.group.WORLD)
    hiding = (x.cos() * (weight @ weight)) @ weight
    return received * hiding


@pytest.mark.parametrize("pinned", [True, False])
def test_no_fusion_makes_a_launch_wait_for_what_hides_it(pinned: bool, two_ranks: Any) -> None:
    link = quick_link().inter_node
    slow = dataclasses.replace(link, bandwidth=1e7)
    profile = dataclasses.replace(quick_link(), intra_node=slow, inter_node=slow)
    plan = Plan(config=resolve(FarSkipConfig(memory_increase=10.0)), profile=profile)
    pin = pin_products if pinned else lambda kernels: None
    options = {
        "post_grad_custom_post_pass": PostGradPass("test", None, plan),
        **scheduling_options({}, KernelPass(plan, "test"), pin, "test"),
    }
    compiled = torch.compile(fused_with_what_hides_it, fullgraph=True, options=options)
    x = torch.randn(128, 128)
    with torch.no_grad():
        (code,) = get_code_of(compiled, x, x, graphs=1)
    program = steps(code)
    if pinned:
        assert program == ["announce", "kernel", "all_to_all_single", "mm", "kernel", "mm", "wait", "kernel"]
    else:  # the fusion that the pin is for
        assert program == ["announce", "mm", "kernel", "all_to_all_single", "mm", "wait", "kernel"]
