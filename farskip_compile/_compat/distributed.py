"""The private torch.distributed APIs behind the order check; a part of `_compat`.

Checked by running on torch 2.13.0; presence and signatures by reading on 2.11, 2.12, 2.14 and 2.15.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

SILENT_BACKENDS = ("fake", "undefined")
"""Backends that send nothing, so that nothing can hang."""


@dataclass(frozen=True)
class StoreClient:
    """The store of a process group, as one of its ranks sees it."""

    group: str
    rank: int
    size: int
    timeout_seconds: float
    store: Any

    def set(self, key: str, value: str) -> None:
        """Write a value."""
        self.store.set(key, value)

    def has(self, key: str) -> bool:
        """Whether a key has been written; does not block."""
        return bool(self.store.check([key]))

    def get(self, key: str) -> str:
        """The value of a key, or the empty string; does not block."""
        return self.store.get(key).decode() if self.has(key) else ""


def world_group() -> Any | None:
    """The default process group, if there is one."""
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


def process_group_store(name: str) -> StoreClient | None:
    """The store of the process group called `name`; None if its ranks have nothing to tell each other."""
    group = distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined,arg-type,unused-ignore]
    backend, store = distributed_c10d._world.pg_map[group]
    if group.size() == 1 or str(backend).lower() in SILENT_BACKENDS or store is None:
        return None
    timeout = distributed_c10d._get_default_timeout(dist.Backend(backend))
    return StoreClient(name, group.rank(), group.size(), timeout.total_seconds(), store)


def group_size(name: str) -> int:
    """Number of ranks of the process group called `name`."""
    return int(distributed_c10d._resolve_process_group(name).size())  # type: ignore[attr-defined,arg-type,unused-ignore]


def group_ranks(name: str) -> list[int]:
    """Global ranks of the process group called `name`, in order."""
    group = distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined,arg-type,unused-ignore]
    return dist.get_process_group_ranks(group)
