# SPDX-License-Identifier: Apache-2.0
"""The private torch.distributed APIs behind the order check; a part of `_compat`.

Checked by running on torch 2.11.0, 2.13.0 and 2.15.0; presence and signatures by reading on 2.12 and 2.14.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch._dynamo.config as dynamo_config
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d

from farskip_compile._compat.names import DDP_CUTS

SILENT_BACKENDS = ("fake", "undefined")
"""Backends that send nothing, so that nothing can hang."""


class StoreLost(Exception):
    """The store can't be reached: the process that keeps it has ended."""


@dataclass(frozen=True)
class StoreClient:
    """The store of a process group, as one of its ranks sees it.

    Raises:
        StoreLost: any of the methods.
    """

    group: str
    rank: int
    """Number of this rank in the group."""
    ranks: tuple[int, ...]
    """Global numbers of the ranks, in the order of the group."""
    timeout_seconds: float
    """Of the collectives of the group."""
    store: Any

    def set(self, key: str, value: str) -> None:
        """Write a value."""
        with _told_apart():
            self.store.set(key, value)

    def has(self, *keys: str) -> bool:
        """Whether all keys have been written, in one request; does not block."""
        with _told_apart():
            return bool(self.store.check(list(keys)))

    def get(self, key: str) -> str:
        """The value of a key, or the empty string; does not block."""
        with _told_apart():
            return self.store.get(key).decode() if self.store.check([key]) else ""

    def remove(self, key: str) -> None:
        """Forget a key."""
        with _told_apart():
            self.store.delete_key(key)


@contextmanager
def _told_apart() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # `dist.DistError`, or whatever else a kind of store throws
        raise StoreLost(str(error)) from error


def world_group() -> Any | None:
    """The default process group, if there is one."""
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


def world_size() -> int:
    """Number of ranks of the default process group; 1 without one."""
    return dist.get_world_size() if world_group() is not None else 1


def process_group_store(name: str) -> StoreClient | None:
    """The store of the process group called `name`; None if its ranks have nothing to tell each other."""
    group = distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined,arg-type,unused-ignore]
    backend, store = distributed_c10d._world.pg_map[group]
    if group.size() == 1 or str(backend).lower() in SILENT_BACKENDS or store is None:
        return None
    ranks = tuple(dist.get_process_group_ranks(group))
    return StoreClient(name, group.rank(), ranks, _timeout_seconds(group, backend), store)


def world_store() -> StoreClient | None:
    """The store of the default process group, in which ranks have their global numbers."""
    world = world_group()
    return process_group_store(world.group_name) if world is not None else None


def _timeout_seconds(group: Any, backend: Any) -> float:
    """How long a collective of `group` may take; the longest, if it has a backend for each device."""
    options = [getattr(group._get_backend(device), "options", None) for device in group._device_types]
    timeouts = [timeout for one in options if (timeout := getattr(one, "_timeout", None)) is not None]
    timeout = max(timeouts) if timeouts else distributed_c10d._get_default_timeout(dist.Backend(backend))
    return float(timeout.total_seconds())


def is_group(name: str) -> bool:
    """Whether `torch.distributed` has a process group of this name. Libraries have groups of their own."""
    try:
        group_size(name)
    except (RuntimeError, ValueError):
        return False
    return True


def group_size(name: str) -> int:
    """Number of ranks of the process group called `name`."""
    return int(distributed_c10d._resolve_process_group(name).size())  # type: ignore[attr-defined,arg-type,unused-ignore]


def group_ranks(name: str) -> list[int]:
    """Global ranks of the process group called `name`, in order."""
    group = distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined,arg-type,unused-ignore]
    return dist.get_process_group_ranks(group)


def leave_to_owner(module: nn.Module, names: Iterable[str]) -> None:
    """Let `DistributedDataParallel` neither send nor sum these parameters of `module`, by name."""
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(names))


def whole_graphs_under_ddp() -> AbstractContextManager[None]:
    """Within it, Dynamo does not cut graphs at the buckets of `DistributedDataParallel`."""
    found: AbstractContextManager[None] = dynamo_config.patch({DDP_CUTS: False})
    return found
