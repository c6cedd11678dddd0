# SPDX-License-Identifier: Apache-2.0
"""The ATen graphs that AOTAutograd makes of a graph of Dynamo, without compiling it; a part of `_compat`.

Checked by running on torch 2.13.0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from functorch.compile import min_cut_rematerialization_partition
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.decorators import mark_unbacked
from torch._functorch import config as functorch_config

from farskip_compile._compat.names import EAGER_BACKWARD


def aten_graphs(module: fx.GraphModule, inputs: Sequence[Any]) -> list[tuple[str, fx.Graph]]:
    """Phase (`forward`, `backward` or `inference`) and graph; a backward graph only where gradients are enabled.

    What forward keeps for backward is decided as under Inductor. `module`, from Dynamo, may be used up.
    """
    found: list[tuple[str, fx.Graph]] = []

    def keep(phase: str) -> Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]:
        def compiler(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
            found.append((phase, graph.graph))
            return graph.forward

        return compiler

    compiler = aot_autograd(
        fw_compiler=keep("forward"),
        bw_compiler=keep("backward"),
        inference_compiler=keep("inference"),
        partition_fn=functools.partial(min_cut_rematerialization_partition, compiler="inductor"),
    )
    with functorch_config.patch({EAGER_BACKWARD: True}):
        compiler(module, inputs)
    return found


def keep_sizes_open(value: torch.Tensor, dimensions: Sequence[int]) -> None:
    """Let the next graph that is given `value` know nothing of these sizes, not even that one is 0 or 1."""
    mark_unbacked(value, list(dimensions))
