# SPDX-License-Identifier: Apache-2.0
"""All-reduces as a start and a wait: the order that comes out, and that it computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, effects, ops
from farskip_compile.records.compile import CompileReport
from farskip_compile.vllm import overlap
from farskip_compile.vllm.asked import Asked, ServingOptions
from farskip_compile.vllm.rewiring import rewire
from tests.vllm import fake_operators
from tests.vllm.written_models import Model, Style, by_hand

STYLE = Style(layers=4, dense=1, shared=True, experts="opaque", ranks=True, float_type=torch.float32)
OUT = replace(STYLE, experts="open")
"""With the shared experts out of the operator of the routed ones."""


@pytest.fixture(autouse=True, scope="module")
def operators() -> None:
    fake_operators.register()


@pytest.fixture
def one_rank(tmp_path, monkeypatch) -> Iterator[None]:
    """Collectives that run, over a group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    monkeypatch.setattr(overlap, "own_group", lambda name: dist.group.WORLD)
    yield
    dist.destroy_process_group()


@pytest.fixture
def two_ranks(monkeypatch) -> Iterator[None]:
    """Collectives that do not run, over a group of two."""
    with fake_ranks(2) as group:
        monkeypatch.setattr(overlap, "own_group", lambda name: group)
        yield


def started(style: Style, run: bool = True, **options: object) -> tuple[object, CompileReport, torch.fx.Graph]:
    found = []

    def backend(module, _):
        asked = Asked(ServingOptions(connectivity="full", overlap=True, **options), None, "a test")
        found.append((rewire(module, asked, {"inner": "eager", "schedule": False}, order=True)[1], module.graph))
        return module.forward if run else (lambda *args: (torch.zeros(6, 16),))

    torch._dynamo.reset()
    torch._dynamo.mark_dynamic(ids := torch.arange(6), 0)
    with torch.no_grad():
        output = torch.compile(Model(style), backend=backend, fullgraph=True)(ids)
    return output, *found[0]


def hidden(graph: torch.fx.Graph) -> list[set[str]]:
    """For each all-reduce, what runs between its start and its wait: attention, experts."""
    flights: dict[torch.fx.Node, set[str]] = {}
    found = []
    for node in graph.nodes:
        name = ops.op_name(node)
        if name == "_c10d_functional::all_reduce":
            flights[node] = set()
            found.append(flights[node])
        elif name == "_c10d_functional::wait_tensor":
            del flights[node.args[0]]
        elif "attention_with_output" in name or "moe" in name:
            for flight in flights.values():
                flight.add("attention" if "attention" in name else "experts")
    return found


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("style", [STYLE, OUT], ids=["inside", "outside"])
@pytest.mark.parametrize("merge", [False, True])
def test_it_computes_the_same(style, merge):
    output, report, graph = started(style, merge_reductions=merge)
    names = [ops.op_name(node) for node in graph.nodes]
    assert report.reductions_started == names.count("_c10d_functional::all_reduce") > 0
    assert "vllm::all_reduce" not in names
    assert names.count("farskip::announce") == 1
    with torch.no_grad():
        torch.testing.assert_close(output, by_hand(Model(style), torch.arange(6), "full"))


@pytest.mark.usefixtures("two_ranks")
def test_the_order_is_amds():
    """Attention and shared experts are reduced under the routed ones, these under the next layer's attention."""
    _, _, graph = started(OUT, run=False, merge_reductions=True)
    routed, attention = {"experts"}, {"attention"}
    # after those of the dense layer, two for each layer with experts; after the last ones nothing is left to do
    assert hidden(graph)[-6:] == [routed, attention, routed, attention, routed, set()]
    for node in graph.nodes:
        if comms.is_wait(node):
            assert effects.storage(node) == effects.storage(node.args[0]), "the memory of what it waits for"


@pytest.mark.usefixtures("two_ranks")
def test_the_order_is_verified(monkeypatch):
    def wait_first(graph, *args, **kwargs):
        found = plain(graph, *args, **kwargs)
        wait = next(node for node in graph.nodes if comms.is_wait(node))
        next(iter(graph.nodes)).append(wait)
        return found

    plain = overlap.schedule_graph
    monkeypatch.setattr(overlap, "schedule_graph", wait_first)
    with pytest.raises(VerificationError, match="comes before"):
        started(OUT, run=False)


def test_what_is_not_a_product_costs_nothing_and_experts_cost_more_than_one():
    graph = torch.fx.Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    product = graph.call_function(torch.nn.functional.linear, (x, w))
    experts = graph.call_function(torch.ops.vllm.moe_forward.default, (x, x, None, None, "layer", 0))
    other = graph.call_function(torch.neg, (x,))
    graph.output((product, experts, other))
    for node in (x, product, experts, other):
        node.meta["example_value"] = torch.empty(64, 32, device="meta")
    w.meta["example_value"] = torch.empty(32, 32, device="meta")
    experts.meta["farskip_declared"] = "routed"
    estimates = overlap.ServedEstimates(graph)
    assert estimates.compute(experts) > estimates.compute(product) > estimates.compute(other) == 0
