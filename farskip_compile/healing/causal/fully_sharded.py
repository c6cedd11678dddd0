# SPDX-License-Identifier: Apache-2.0
"""Models whose parameters are sharded by `fully_shard` (FSDP2): one shard on each rank, whole only while they are used.

In:    a model that may have such units; each of them is sharded over all ranks of the default process group.
Out:   `units`, what they hold (`held`); `at_rest`: all parameters are shards again, after an error by `recover`;
       `exchanged`: within it the model has other numbers, shard by shard, so that its own hooks gather them.
Never: gathers more than one unit at a time; changes a setting of a unit.

A forward pass without a backward pass leaves the parameters of the root whole, and the module then has other tensors in
place of its parameters: whoever asks for these, or writes to them, calls `at_rest` first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from farskip_compile.errors import ConfigError
from farskip_compile.healing.causal.tensor_files import local

WAY_OUT = "fully_shard(..., mesh=...) over all ranks, once for each layer and the root"


def units(model: nn.Module) -> list[Any]:
    """The modules on which `fully_shard` was called."""
    if not torch.distributed.is_available():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def at_rest(model: nn.Module) -> None:
    """Let all units hold shards again."""
    for unit in units(model):
        unit.reshard()


def recover(model: nn.Module) -> None:
    """`at_rest` after an error within a forward or backward pass, of which units still wait for the end."""
    found = units(model)
    inside = {id(inner) for unit in found for inner in unit.modules() if inner is not unit}
    for unit in found:
        if id(unit) not in inside and hasattr(unit, "reset_iter_state"):  # older versions of torch have no such method
            unit.reset_iter_state()
    at_rest(model)


@torch.no_grad()
def held(model: nn.Module, size: int) -> frozenset[str]:
    """Names of the parameters that units of `model` hold; they are gathered once, unit by unit, on all `size` ranks.

    Raises:
        ConfigError: some are sharded over other ranks than all.
    """
    at_rest(model)
    spread = {name: value for name, value in model.named_parameters() if hasattr(value, "full_tensor")}
    found: set[str] = set()
    for unit in units(model):
        unit.unshard()
        here = {id(value) for value in model.parameters()}
        found |= {name for name, value in spread.items() if id(value) not in here}
        unit.reshard()
    for name in sorted(found):
        shards: Any = spread[name]
        mesh, (*others, _) = shards.device_mesh, shards.placements
        if mesh.size() != size or not all(one.is_replicate() for one in others):
            raise ConfigError(
                f"{name} is sharded over {mesh.size()} of {size} ranks as {shards.placements}; gradients are summed "
                "where one mesh of all ranks shards each parameter once",
                way_out=WAY_OUT,
            )
    return frozenset(found)


def values_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, at rest: of what is sharded, this rank's shards."""
    at_rest(model)
    return dict((*model.named_parameters(), *model.named_buffers()))


@contextmanager
def exchanged(model: nn.Module, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within a `with`, the numbers of `values` are in the parameters and buffers of `model`, and those of the model in
    `values`. Both keep their tensors; one shard is copied at a time."""
    _exchange(model, values)
    try:
        yield
    except BaseException:
        recover(model)
        raise
    finally:
        _exchange(model, values)


@torch.no_grad()
def _exchange(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    for name, value in values_of(model).items():
        ours, theirs = local(value), local(values[name])
        kept = ours.clone()
        ours.copy_(theirs)
        theirs.copy_(kept)
