# SPDX-License-Identifier: Apache-2.0
"""Training on several ranks: who has what, and how gradients are combined.

In:    a model on each rank of the default process group, each with data of its own; parameters are either the same on
       all ranks (data parallelism) or parts of one that is spread over them (experts).
Out:   `TrainingRanks`: sums over ranks, the gradients of a step as one process would have them, their common norm;
       parameters put together.
Never: guesses what is a part. `sharded=...` says so, or it is detected: what differs between the ranks is a part. A
       parameter that is the same number everywhere (a bias of zeros) may be either, so next to parts it must be given.

The loss of each rank is its sum over targets, divided by the targets of all ranks. Gradients of what all ranks have are
summed by `DistributedDataParallel`; the gradient of a part is complete as it is, since the exchange of tokens brings
back the gradients of all ranks' tokens. In a model with units of FSDP2 (`fully_sharded`), these average gradients, of
which sums are made, and what they leave out is summed here, without `DistributedDataParallel`. Other DTensors take care
of themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from farskip_compile._compat.distributed import leave_to_owner, world_group
from farskip_compile._compat.modules import plain_name
from farskip_compile.base.writing.locks import exclusive
from farskip_compile.errors import ConfigError
from farskip_compile.healing.causal.fully_sharded import held, units
from farskip_compile.healing.causal.identity import bytes_of
from farskip_compile.healing.causal.tensor_files import local

Sharded = Callable[[str, nn.Parameter], bool]


class TrainingRanks:
    """The ranks that train one model together; a single process is one rank.

    `sharded`: whether a parameter, by name, is this rank's part of one; None: it is detected.
    """

    def __init__(self, model: nn.Module, sharded: Sharded | None = None) -> None:
        world = world_group()
        self.active = world is not None and world.size() > 1
        self.rank = dist.get_rank() if self.active else 0
        self.size = dist.get_world_size() if self.active else 1
        self.device = next(model.parameters()).device
        self.model = model
        self.parts: frozenset[str] = frozenset()
        if self.active:
            named = model.named_parameters()
            found = _detected(model) if sharded is None else [name for name, value in named if sharded(name, value)]
            self.parts = frozenset(found)
        self.is_sharded = bool(units(model))
        """By FSDP2."""
        self._averaged: frozenset[str] = frozenset()

    def wrap(self, compiled: nn.Module) -> nn.Module:
        """The compiled model, whose backward averages the gradients of what all ranks have.

        Raises:
            ConfigError: the gradients of a sharded parameter would not be those of all ranks.
        """
        if self.active and self.is_sharded:
            self._averaged = held(self.model, self.size) - self.parts
            self._check_sharded()
        if not self.active or self.is_sharded:
            return compiled
        before = dict(vars(self.model))
        leave_to_owner(compiled, [name for name, _ in compiled.named_parameters() if plain_name(name) in self.parts])
        found = DistributedDataParallel(compiled, broadcast_buffers=False)
        for name in vars(self.model).keys() - before.keys():  # a list of names, which only the wrapper needs
            delattr(self.model, name)
        return found

    def sum(self, *values: float) -> list[float]:
        """Sums over all ranks, the same on each."""
        if not self.active:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def finish_gradients(self, limit: float | None) -> float:
        """Make the gradients those of the sum of all ranks' losses, with a common norm of at most `limit`.

        Returns:
            The norm before, the same on all ranks.
        """
        grads = {name: value.grad for name, value in self.model.named_parameters() if value.grad is not None}
        mine = {name for name in grads if name in self.parts}
        distributed = {name for name, grad in grads.items() if hasattr(grad, "full_tensor")}
        spread, everywhere = distributed - mine, grads.keys() - distributed - mine
        for name in sorted(everywhere) if self.active else ():
            if self.is_sharded:
                dist.all_reduce(grads[name])
            else:
                grads[name].mul_(self.size)  # DDP has averaged them
        for name in spread & self._averaged:
            grads[name].mul_(self.size)
        norms = [_norm([grads[name] for name in sorted(names)]) for names in (everywhere, spread)]
        (of_parts,) = self.sum(_norm([local(grads[name]) for name in sorted(mine)]) ** 2)
        norm = math.sqrt(sum(one**2 for one in norms) + of_parts)
        if limit is not None:
            total = torch.tensor(norm, dtype=torch.float64, device=self.device)
            for names in (grads.keys() - distributed, distributed):  # torch multiplies no mixture of the two
                trained = [value for name, value in self.model.named_parameters() if name in names]
                torch.nn.utils.clip_grads_with_norm_(trained, limit, total)
        return norm

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.active:
            dist.barrier()

    def _check_sharded(self) -> None:
        for name, value in self.model.named_parameters():
            if hasattr(value, "full_tensor") and name not in self._averaged and name not in self.parts:
                raise ConfigError(
                    f"{name} is a distributed tensor which no unit of fully_shard holds: it is not known whether its "
                    "gradient is that of all ranks",
                    way_out="self_distill(..., sharded=lambda name, parameter: ...), if it is a part of experts whose "
                    "tokens come from all ranks",
                )


@contextlib.contextmanager
def run_alone(folder: Path | None, ranks: TrainingRanks, way_out: str) -> Iterator[None]:
    """Have `folder` for this run alone (`locks.exclusive`): the first rank locks it, and all hear if it can't.

    Raises:
        ConfigError: another process writes into the folder, or it can't be written.
    """
    refused: ConfigError | None = None
    with contextlib.ExitStack() as stack:
        if folder is not None and ranks.rank == 0:
            try:
                stack.enter_context(exclusive(folder, way_out))
            except ConfigError as error:
                refused = error
        (against,) = ranks.sum(refused is not None)
        if against:
            raise refused or ConfigError(f"the first rank could not lock {folder}", way_out=way_out)
        yield


def _detected(model: nn.Module) -> list[str]:
    """Parameters that differ between the ranks, by the hash of their bytes."""
    named = [(name, value.detach()) for name, value in model.named_parameters() if not hasattr(value, "to_local")]
    mine = {name: _identity(value) for name, value in named}
    theirs: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(theirs, mine)
    if any(one.keys() != mine.keys() for one in theirs):
        raise ConfigError(
            "the names of the parameters differ between the ranks",
            way_out="the same model on each rank; pipelines are not trained",
        )
    parts = [name for name in mine if any(one[name] != mine[name] for one in theirs)]
    homes = {name.rpartition(".")[0] for name in parts}
    unclear = [n for n, (_, _, one) in mine.items() if one and n not in parts and n.rpartition(".")[0] in homes]
    if unclear:
        raise ConfigError(
            f"{unclear[0]} is one number, the same on all ranks, next to parameters that differ between ranks: it may "
            "be a part of a spread parameter, or not",
            way_out="self_distill(..., sharded=lambda name, parameter: ...)",
        )
    return parts


def _identity(value: torch.Tensor) -> tuple[list[int], str, bool]:
    """(shape, hash of the bytes, whether all numbers are the same one)."""
    is_one_number = value.numel() > 0 and bool((value == value.flatten()[0]).all())
    return list(value.shape), hashlib.blake2b(bytes_of(value), digest_size=16).hexdigest(), is_one_number


def _norm(grads: list[torch.Tensor]) -> float:
    if not grads:
        return 0.0
    norm: Any = torch.nn.utils.get_total_norm(grads)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
