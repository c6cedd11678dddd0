# SPDX-License-Identifier: Apache-2.0
"""Graphs to schedule, and how a fault in their order is planted and judged.

`schedule_post_grad` checks what it has done itself, so a fault goes between: into the graph, when it is scheduled and
pinned, or into the source of a pass. What comes out must not be what comes out without the fault.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from farskip_compile import testing
from farskip_compile._compat import inductor
from farskip_compile.compiler.config import FarSkipConfig, resolve
from farskip_compile.compiler.inductor_passes import post_grad
from farskip_compile.compiler.inductor_passes.plan import Plan
from farskip_compile.compiler.inductor_passes.post_grad import schedule_post_grad
from farskip_compile.costs import load_profile
from farskip_compile.errors import VerificationError
from farskip_compile.models import ParallelConfig, build
from farskip_compile.passes.graph import comms
from farskip_compile.records.announcement import Announcement, announcement
from tests.mutation.bench import Fault, Verdict, code, mutated

aten = torch.ops.aten
c10d = torch.ops._c10d_functional
SIZE = 64


def plan(common: dict[str, Any] | None = None, **options: Any) -> Plan:
    config = FarSkipConfig(memory_increase=1e6, **options)
    return Plan(config=resolve(config), profile=load_profile("cpu-gloo"), common=common or {})


class Graph:
    """A post-grad graph: nodes by the names that it was written with."""

    def __init__(self, *inputs: str) -> None:
        self.graph = fx.Graph()
        self.named: dict[str, fx.Node] = {name: self.graph.placeholder(name) for name in inputs}
        self.inputs = len(inputs)

    def call(self, name: str, target: Any, *args: Any) -> Graph:
        def of(value: Any) -> Any:
            if isinstance(value, list):
                return [of(one) for one in value]
            return self.named.get(value, value) if isinstance(value, str) else value

        node = self.graph.call_function(target, tuple(of(arg) for arg in args))
        node.name = name
        self.named[name] = node
        return self

    def reduce(self, name: str, source: str, group: str = "0", reduction: str = "sum") -> Graph:
        """A launch called `name`, and a wait called `name_w`."""
        self.launch(name, source, group, reduction)
        return self.call(f"{name}_w", c10d.wait_tensor.default, name)

    def launch(self, name: str, source: str, group: str = "0", reduction: str = "sum") -> Graph:
        node = self.graph.call_function(c10d.all_reduce.default, (self.named[source], reduction, group))
        node.name = name
        self.named[name] = node
        return self

    def done(self, *outputs: str) -> fx.GraphModule:
        self.graph.output(tuple(self.named[name] for name in outputs))
        module = fx.GraphModule({}, self.graph)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            FakeTensorProp(module, mode).propagate(*(torch.zeros(SIZE, SIZE) for _ in range(self.inputs)))
        return module


def reductions() -> fx.GraphModule:
    """Two reductions that do not need each other, and products to hide them behind."""
    graph = (
        Graph("primals_1", "primals_2")
        .call("a", aten.sin.default, "primals_1")
        .call("b", aten.cos.default, "primals_1")
    )
    graph.reduce("one", "a").reduce("two", "b", reduction="max")
    for number in range(3):
        graph.call(f"free{number}", aten.mm.default, ("primals_1", "free0", "free1")[number], "primals_2")
    graph.call("needs", aten.mm.default, "one_w", "two_w")
    return graph.done("needs", "free2")


def side_effects() -> fx.GraphModule:
    """Random numbers, writes to a cache and to memory of one's own, and a write in place that Inductor may make."""
    graph = Graph("primals_1", "primals_2", "cache").call("a", aten.sin.default, "primals_1")
    graph.call("noise", aten.rand_like.default, "a").call("more", aten.rand_like.default, "a")
    graph.call("old", aten.mm.default, "cache", "primals_2")
    graph.call("write", aten.copy_.default, "cache", "a")
    graph.call("new", aten.mm.default, "cache", "primals_2")
    graph.call("own", aten.cos.default, "primals_1")
    graph.reduce("one", "own")
    graph.call("free", aten.mm.default, "noise", "more")
    graph.call("over", aten.add_.Tensor, "own", "primals_1")
    graph.call("index", aten.arange.default, 2).call("rows", aten.ones.default, [2, SIZE])
    graph.call("other", aten.exp.default, "primals_1")
    graph.reduce("two", "other")
    graph.call("put", aten.index_put.default, "other", ["index"], "rows")
    graph.call("end", aten.mm.default, "put", "two_w")
    return graph.done("old", "new", "free", "one_w", "own", "end")


def read_then_written() -> fx.GraphModule:
    """A product reads what is then written and sent."""
    graph = Graph("primals_1", "primals_2").call("own", aten.sin.default, "primals_1")
    graph.call("reader", aten.mm.default, "own", "primals_2").call("over", aten.add_.Tensor, "own", "primals_1")
    return graph.reduce("one", "own").call("end", aten.mm.default, "one_w", "primals_2").done("reader", "end")


def sent_then(write: str) -> fx.GraphModule:
    """What was sent is written once it has arrived."""
    graph = Graph("primals_1", "primals_2").call("own", aten.sin.default, "primals_1").reduce("one", "own")
    if write == "written":
        graph.call("over", aten.add_.Tensor, "own", "primals_1")
    else:
        graph.call("index", aten.arange.default, 2).call("rows", aten.ones.default, [2, SIZE])
        graph.call("over", aten.index_put.default, "own", ["index"], "rows")
    graph.call("free", aten.mm.default, "over", "primals_2").call("end", aten.mm.default, "one_w", "primals_2")
    return graph.done("free", "end")


def drawn_twice() -> fx.GraphModule:
    """The second random number is sent."""
    graph = Graph("primals_1", "primals_2").call("noise", aten.rand_like.default, "primals_1")
    graph.call("free", aten.mm.default, "noise", "primals_2").call("more", aten.rand_like.default, "primals_1")
    return graph.reduce("one", "more").call("end", aten.mm.default, "one_w", "primals_2").done("free", "end")


def two_urgent() -> fx.GraphModule:
    """What the second reduction leads to takes longer than what the first one does."""
    graph = Graph("primals_1", "primals_2").call("a", aten.sin.default, "primals_1").reduce("one", "a")
    graph.call("short", aten.exp.default, "one_w").call("b", aten.cos.default, "primals_1").reduce("two", "b")
    for number in range(4):
        graph.call(f"long{number}", aten.mm.default, f"long{number - 1}" if number else "two_w", "primals_2")
    return graph.done("short", "long3")


@functools.cache
def trained() -> tuple[fx.GraphModule, fx.GraphModule]:
    """Forward and backward ATen graph of two MoE layers that share experts over two ranks."""
    found: list[fx.GraphModule] = []

    def keep(module: fx.GraphModule, _: Any) -> Callable[..., Any]:
        found.append(module)
        return lambda args: None

    with testing.fake_ranks(2) as group, torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
        model = build(
            "deepseek_v3",
            parallel=ParallelConfig(ep_group=group, ep_mode="padded"),
            layers=("moe", "moe"),
            vocab_size=32,
            hidden_size=32,
        )
        torch.compiler.reset()
        backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
        with contextlib.suppress(Exception):  # nothing was compiled that could run
            torch.compile(model, backend=backend, fullgraph=True)(torch.zeros(1, 8, dtype=torch.long))
    torch.compiler.reset()
    forward, backward = found
    return forward, backward


GRAPHS: dict[str, Callable[[], fx.GraphModule]] = {
    "reductions": functools.cache(reductions),
    "side effects": functools.cache(side_effects),
    "read, then written": functools.cache(read_then_written),
    "sent, then written": functools.cache(functools.partial(sent_then, "written")),
    "sent, then put": functools.cache(functools.partial(sent_then, "put")),
    "drawn twice": functools.cache(drawn_twice),
    "two urgent": functools.cache(two_urgent),
    "forward graph": lambda: trained()[0],
    "backward graph": lambda: trained()[1],
}


def fresh(name: str) -> fx.GraphModule:
    module = GRAPHS[name]()
    return fx.GraphModule(module, copy.deepcopy(module.graph))


def schedule(module: fx.GraphModule, how: Plan | None = None) -> None:
    with testing.fake_ranks(2):
        schedule_post_grad(module.graph, how or plan())


class Scheduled:
    """A graph that is scheduled, announced and pinned."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.named = {node.name: node for node in graph.nodes}

    def launches(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if comms.is_collective(node)]

    def waits(self) -> list[fx.Node]:
        """Pinned ones, which are nodes around a wait, too."""
        return [node for node in self.graph.nodes if comms.is_wait(node) or inductor.pinned(node) is not None]

    def wait_of(self, launch: fx.Node) -> fx.Node:
        return next(wait for wait in self.waits() if launch in wait.args)

    def pinned(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if inductor.pinned(node) is not None]

    def announcement(self) -> fx.Node:
        return next(node for node in self.graph.nodes if node.target is announcement())


def in_schedule(name: str, graph: str, break_it: Callable[[Scheduled], None]) -> Fault:
    """A fault in a graph that has just been scheduled."""

    def judge() -> Verdict | None:
        verify_order = post_grad.verify_order

        def break_and_verify(graph: fx.Graph, *args: Any) -> None:
            right = code(graph)
            break_it(Scheduled(graph))
            assert code(graph) != right, "the fault has changed nothing"
            verify_order(graph, *args)

        with mock.patch.object(post_grad, "verify_order", break_and_verify):
            return judged(fresh(graph))

    return Fault(name, graph, judge)


def in_scheduler(name: str, function: Callable[..., Any], old: str, new: str, graph: str) -> Fault:
    """A fault in a pass of the scheduler: `old` is replaced by `new` in the source of `function`."""

    def judge() -> Verdict | None:
        right, wrong = fresh(graph), fresh(graph)
        schedule(right)
        with mutated(function, old, new):
            verdict = judged(wrong)
        assert code(wrong.graph) != code(right.graph), "an equivalent mutant"
        return verdict

    return Fault(name, f"{function.__module__.rpartition('.')[2]}.{function.__name__}", judge)


def judged(module: fx.GraphModule) -> Verdict | None:
    try:
        schedule(module)
    except VerificationError as error:
        return Verdict.of("order verification", error)
    return None


def said(module: fx.GraphModule) -> Announcement:
    """What a scheduled graph announces."""
    return Announcement.from_text(str(Scheduled(module.graph).announcement().args[0]))
