# SPDX-License-Identifier: Apache-2.0
"""The ranks that calibrate together, and the ways in which they agree.

Contract: everything here is collective over the group: all its ranks make the same calls in the same order. Without a
group there is one rank, and nothing is sent. Messages between the ranks are small.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import torch
import torch.distributed as dist

from farskip_compile.errors import ConfigError


class MeasuredGroup:
    """A process group to calibrate; None: the default group if there is one, else this process alone.

    Args:
        group: the ranks.
        device: where tensors of the group's collectives are.

    Raises:
        ConfigError: this process is not a member of `group`.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        ready = dist.is_available() and dist.is_initialized()
        self.group = (group if group is not None else dist.group.WORLD) if ready else None
        self.device = device
        self.size = dist.get_world_size(self.group) if self.group is not None else 1
        self.rank = dist.get_rank(self.group) if self.group is not None else 0
        if self.rank < 0:
            raise ConfigError(
                "this process is not a member of the group to calibrate", way_out="call calibrate on its members only"
            )

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.slowest(torch.zeros(1))

    def slowest(self, seconds: torch.Tensor) -> torch.Tensor:
        """Return the maximum over all ranks, entry by entry."""
        if self.group is None:
            return seconds
        worst = seconds.to(self.device)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX, group=self.group)
        return worst.cpu()

    def agreed(self, value: Any) -> Any:
        """Return the value of rank 0."""
        if self.group is None or self.size == 1:
            return value
        values = [value]
        first = dist.get_global_rank(self.group, 0)
        dist.broadcast_object_list(values, src=first, group=self.group, device=self.device)
        return values[0]

    def per_node(self) -> int:
        """Return the ranks of the group that share a node, as the launcher or the host names say."""
        if self.group is None:
            return 1
        launched = os.environ.get("LOCAL_WORLD_SIZE", "")
        hosts: list[Any] = [None] * self.size
        dist.all_gather_object(hosts, (socket.gethostname(), launched), group=self.group)
        names = [host for host, _ in hosts]
        counts = [int(count) for _, count in hosts if str(count).isdigit()]
        return min(max(names.count(name) for name in names), *counts, self.size)

    def part(self, members: list[list[int]]) -> dist.ProcessGroup | None:
        """Return a new group of the list in `members` that has this rank; the lists share no rank."""
        assert self.group is not None
        mine = next((ranks for ranks in members if self.rank in ranks), None)
        if mine is None:
            return None
        world = [dist.get_global_rank(self.group, rank) for rank in mine]
        return dist.new_group(world, use_local_synchronization=True)
