# SPDX-License-Identifier: Apache-2.0
"""The load of each expert: the copies of tokens that the routers of a model send to it.

In:    a model and token ids.
Out:   the number of copies of tokens for each expert of each layer.
Never: changes the model; the counting hooks are removed afterwards.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from farskip_compile.errors import ConfigError
from farskip_compile.models.router import Router, Routing


@torch.no_grad()
def load_per_expert(model: nn.Module, ids: torch.Tensor, *, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Return the copies of tokens that a forward pass of `model(ids)` sends to each expert.

    Args:
        model: a decoder or one of its forms, not compiled.
        ids: token ids [B, T]; under expert parallelism every rank calls this with its own ids.
        group: the ranks that share the experts, to count the tokens of all of them; None: those of this rank. (With
            `ep_mode="allgather"` every rank routes the tokens of all ranks anyway: leave it out.)

    Returns:
        [MoE layers, experts], int64, on the device of the ids; rows that a padded exchange drops are counted. Rank i of
        n has the experts from i * experts / n on, so its load is `load.unflatten(-1, (n, -1)).sum(-1)[:, i]`.

    Raises:
        ConfigError: the model has no router.
    """
    routers = [module for module in model.modules() if isinstance(module, Router)]
    if not routers:
        raise ConfigError("the model has no router", way_out='a decoder with at least one "moe" layer')
    load = torch.zeros(len(routers), routers[0].config.experts, dtype=torch.int64, device=ids.device)

    def count(layer: int, _: nn.Module, __: Any, routing: Routing) -> None:
        chosen = routing[0].flatten()
        load[layer].scatter_add_(0, chosen, torch.ones_like(chosen))

    hooks = [router.register_forward_hook(partial(count, layer)) for layer, router in enumerate(routers)]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    if group is not None:
        dist.all_reduce(load, group=group)
    return load
