# SPDX-License-Identifier: Apache-2.0
"""All-reduces of tensor parallelism as a start and a wait, in the order of our scheduler.

In:    a rewired graph, in which `vllm::all_reduce` blocks: what comes after it waits.
Out:   in the place of each the launch of torch's functional all-reduce and its wait, over a process group of their own;
       on request ordered: launches early, waits late, with a proof that it is the same graph.
Never: looks at a clock; changes the order of launches.

A group of their own, since a process group runs its launches in order and vLLM's other collectives should not wait.
vLLM's own all-reduce for small messages is not used for these: it has one buffer, which one message fills.

Algorithm:
1. Replace the calls. They keep their tags, by which the published order is known.
2. Order the graph: `schedule_graph`, by estimates of the graph alone, the same on all ranks.
3. Announce what it launches; ranks compare that at the first run.
4. Verify the order.

Where Inductor gets the graph whole, 2 to 4 are done there, on its own graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from farskip_compile.costs.device import profile_of
from farskip_compile.costs.estimates import Estimates
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.declared import declared, outputs_of
from farskip_compile.passes.graph.walk import fresh_like
from farskip_compile.passes.schedule.graph import schedule_graph
from farskip_compile.passes.schedule.search import MemoryLimits
from farskip_compile.records.announcement import Announcement, collective_orders, collective_sizes, insert_announcement
from farskip_compile.records.schedule import Predicted, ScheduleReport
from farskip_compile.verify.before import remember
from farskip_compile.verify.schedule import verify_order

ALL_REDUCES = ("vllm::all_reduce", "farskip::shm_all_reduce")
SPLITTING = ("_c10d_functional::all_reduce", "_c10d_functional::wait_tensor")
"""What vLLM is to split the graph at, besides attention: CUDA graphs of pieces can't hold a launch without its wait."""
WIDTHS = 8
"""An operator that shows none of its weights counts as a product of its activation with a matrix, this many times as
wide as the activation: about what a feed-forward network is."""
LIMITS = MemoryLimits(memory_increase=1.0)
"""Of activations: their peak is measured by vLLM's profiling run, and small beside the weights and the cache, which a
graph does not show."""
_groups: dict[str, Any] = {}


def start_and_wait(module: fx.GraphModule, *, order: bool) -> int:
    """Steps 1 to 4; returns how many all-reduces became a start and a wait."""
    graph = module.graph
    reductions = [node for node in graph.nodes if ops.op_name(node) in ALL_REDUCES]
    for node in reductions:
        _open(graph, node)  # 1
    if reductions and order:
        _order(module)
    return len(reductions)


def own_group(name: str = "") -> Any:
    """A process group of the ranks of vLLM's group `name`, or of its tensor parallelism, that only these all-reduces
    use. All ranks call this before the model is made: a graph from a cache names the group, and makes none."""
    from vllm.distributed import parallel_state

    name = name or parallel_state.get_tp_group().unique_name
    if name not in _groups:
        coordinator = parallel_state._groups[name]()
        assert coordinator is not None
        _groups[name] = torch.distributed.new_group(
            coordinator.ranks,
            backend=torch.distributed.get_backend(coordinator.device_group),
            use_local_synchronization=True,
            group_desc=f"farskip {name}",
        )
    return _groups[name]


def _open(graph: fx.Graph, node: fx.Node) -> None:
    given = (*node.args, *node.kwargs.values())
    value = next(one for one in given if isinstance(one, fx.Node))
    name = next((one for one in given if isinstance(one, str)), "")
    functional = torch.ops._c10d_functional
    with graph.inserting_before(node):
        launch = graph.call_function(functional.all_reduce.default, (value, "sum", own_group(name).group_name))
        wait = graph.call_function(functional.wait_tensor.default, (launch,))
    for new in (launch, wait):
        new.meta = {**node.meta, "example_value": fresh_like(node.meta["example_value"])}
    wait.meta["example_value"] = launch.meta["example_value"]
    node.replace_all_uses_with(wait)
    graph.erase_node(node)


def _order(module: fx.GraphModule) -> None:
    graph = module.graph
    before = remember(graph)
    schedule = schedule_graph(graph, ServedEstimates(graph), LIMITS)  # 2
    orders, sizes = collective_orders(graph), collective_sizes(graph)
    report = ScheduleReport("served", orders, before=Predicted.of(schedule.before), after=Predicted.of(schedule.after))
    insert_announcement(graph, Announcement(report, sizes=sizes))  # 3
    verify_order(graph, before, pinned=False)  # 4


class ServedEstimates(Estimates):
    """What the nodes of a graph of vLLM's cost: products by the weights that they show, operators that show none as
    feed-forward networks, all else nothing. The order depends on which is long, not on how long."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__(graph, profile_of(graph))

    def compute(self, node: fx.Node) -> float:
        """Seconds of a node on the compute stream."""
        given = _read(node)
        if not given:
            return 0.0
        width = self.size(given[0].shape[-1])
        if ops.is_matmul(node):
            columns = max((self.size(value.shape[-1]) for value in given[1:]), default=width)
        elif declared(node) in ("attention", "routed") or "routed" in outputs_of(node):
            columns = WIDTHS * width
        else:
            return 0.0
        flops = 2.0 * self.size(given[0].numel()) * columns
        kind = str(given[0].dtype).removeprefix("torch.")
        peak = getattr(self.profile.peak_flops, kind, None) or self.profile.peak_flops.float32
        traffic = width * columns * given[0].element_size()
        rates = peak * self.profile.efficiency.matmul, self.profile.memory_bandwidth * self.profile.efficiency.memory
        return max(flops / rates[0], traffic / rates[1]) + self.profile.launch_seconds


def _read(node: fx.Node) -> list[torch.Tensor]:
    """The matrices that `node` is given; the buffer that it fills may be the first."""
    values = map(ops.tensor, node.all_input_nodes)
    return [value for value in values if value is not None and value.dim() > 1 and value.is_floating_point()]
