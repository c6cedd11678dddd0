"""A process group that sends nothing: every rank gets its own data back. For the compute of a step, apart.

Contract: an all-to-all copies its input to its output, so that a model compiled on this group runs the same kernels on
sane numbers, and waits for nobody. The copy stays in the measured time; it is what a rank would do for its own share.
`sent` holds the sizes of all exchanges so far, for whoever wants to repeat them over a real group.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

BACKEND = "local_exchange"


class Done(dist.Work):
    """A collective that is over."""

    def __init__(self) -> None:
        super().__init__()

    def wait(self, timeout: timedelta = timedelta()) -> bool:
        """At once."""
        return True

    def is_completed(self) -> bool:
        """Always."""
        return True


class LocalExchange(dist.ProcessGroup):
    """The group; make it with `local_exchange`."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self.sent: list[tuple[int, torch.dtype]] = []
        """Numbers in each all-to-all, and their type."""
        self._name = ""

    def alltoall_base(
        self, output: torch.Tensor, sent: torch.Tensor, output_splits: list[int], splits: list[int], options: Any = None
    ) -> Done:
        """Equal splits only, since only then the output is as large as the input."""
        self.sent.append((sent.numel(), sent.dtype))
        output.copy_(sent)
        return Done()

    def setGroupName(self, name: str) -> None:
        """Called by `dist.new_group`."""
        self._name = name

    def getGroupName(self) -> str:
        """The name by which compiled code finds the group."""
        return self._name

    def getBackendName(self) -> str:
        """What `dist.get_backend` says."""
        return BACKEND


def local_exchange() -> LocalExchange:
    """A new group over all ranks of the job; all of them call this."""
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(
            BACKEND, lambda store, rank, size, timeout: LocalExchange(rank, size), devices="cpu"
        )
    group = dist.new_group(backend=BACKEND)
    assert isinstance(group, LocalExchange)
    return group
