# SPDX-License-Identifier: Apache-2.0
"""ATen graphs to ask costs of: of a function, of a model (forward and backward), and launches of collectives.

No graph here is run: values are fake, and process groups are torch's `fake` ones, which talk to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.testing._internal.distributed.fake_pg import FakeStore

from farskip_compile.costs.operators import OpCost, op_cost


def trace(function: Callable[..., Any], *inputs: torch.Tensor, dynamic: bool = False) -> fx.Graph:
    """The graph of `function`; with `dynamic`, every size but 0 and 1 is a symbol."""
    module = make_fx(function, tracing_mode="symbolic" if dynamic else "fake")(*inputs)
    module.graph.owning_module = module
    return module.graph


def trace_fake(function: Callable[..., Any], *shapes: tuple[int, ...], device: str = "cpu", **kwargs: Any) -> fx.Graph:
    """Like `trace`, for inputs that need no memory and a device that need not be there."""
    with FakeTensorMode():
        inputs = [torch.empty(shape, device=device, **kwargs) for shape in shapes]
    return make_fx(function)(*inputs).graph


def only(graph: fx.Graph, size: Callable[[Any], int] = int, **kwargs: Any) -> OpCost:
    """The cost of the one operator in `graph` that costs anything."""
    costs = [cost for node in graph.nodes if (cost := op_cost(node, size, **kwargs)).launches]
    assert len(costs) == 1, costs
    return costs[0]


def shape_env(graph: fx.Graph) -> ShapeEnv:
    """The shape environment of a graph with symbolic sizes."""
    values = (node.meta.get("val") for node in graph.nodes)
    lengths = [length for value in values if isinstance(value, torch.Tensor) for length in value.shape]
    return next(length.node.shape_env for length in lengths if isinstance(length, torch.SymInt))


class _NotRun(Exception):
    """In the place of what was compiled: collectives that send nothing give no numbers that sizes could depend on."""


def _not_run(*_: Any) -> Any:
    raise _NotRun


def compiled_graphs(model: nn.Module, ids: torch.Tensor, look: Callable[[fx.Graph], Any]) -> list[Any]:
    """What `look` finds in the forward and in the backward graph, as Inductor would get them; neither is run."""
    found = []

    def compiler(module: fx.GraphModule, _: object) -> Callable[..., Any]:
        found.append(look(module.graph))
        return make_boxed_func(_not_run)

    backend = aot_autograd(
        fw_compiler=compiler,
        bw_compiler=compiler,
        decompositions=select_decomp_table(),
        partition_fn=min_cut_rematerialization_partition,
    )
    with torch._functorch.config.patch(force_non_lazy_backward_lowering=True), suppress(_NotRun):
        torch.compile(model, fullgraph=True, backend=backend)(ids)
    return found


@contextmanager
def fake_ranks(world_size: int) -> Iterator[dist.ProcessGroup]:
    """A group of which this process is rank 0 and all other ranks are imagined."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
