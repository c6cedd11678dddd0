# SPDX-License-Identifier: Apache-2.0
"""A process group of one real rank, whose links take the time that a model says; the other ranks are imagined.

In:    a number of ranks, a device, and a `Wire` (None: exchanges take no time beyond a copy).
Out:   rank 0's group. Results are right for ranks that all send what this one sends. What was sent is counted.
Never: sends anything; makes the host wait on a GPU.

    seconds = alpha + bytes (n-1)/n / bandwidth         all-reduce: twice the bytes

as in `costs/collectives.py`; `profile_of` tells the schedulers so. Honest about streams, the order of launches and what
they cost the host; not about ranks that are late, protocols, or what a transfer takes from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist

from farskip_compile.costs import HardwareProfile, PerCollective
from gpu_bench.device import Device, Wait

NAME = "emulated"
Moves = Callable[[torch.Tensor, torch.Tensor], object]


@dataclass(frozen=True)
class Wire:
    """What each rank's link can do."""

    alpha: float
    """Seconds of a collective, however small it is."""
    bandwidth: float
    """Bytes/s."""
    blocks: int = 0
    """Blocks of 1024 threads that a collective keeps busy; 0: next to nothing."""

    def seconds(self, sent: float) -> float:
        """Of a collective of which this rank sends so many bytes."""
        return self.alpha + sent / self.bandwidth


class _Flight(dist._Work):
    def __init__(self, wait: Wait, buffers: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._wait, self._buffers = wait, buffers  # which live until then, as a library's do

    def wait(self, timeout: Any = None) -> bool:
        self._wait()
        self._buffers = ()
        return True


class EmulatedLink(dist.ProcessGroup):
    """See the module's contract."""

    def __init__(self, rank: int, size: int, device: Device) -> None:
        super().__init__(rank, size)
        self.ranks, self.device, self.called = size, device, ""
        self.wire: Wire | None = None
        self.sent: list[float] = []
        """Bytes that each launch has sent over the link."""

    def getBackendName(self) -> str:
        """For messages."""
        return NAME

    def getGroupName(self) -> str:
        """By which functional collectives find it."""
        return self.called

    def setGroupName(self, name: str) -> None:
        """Set once it is known."""
        self.called = name

    def _launch(self, kind: str, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], size: int, move: Moves) -> Any:
        sent = size * (self.ranks - 1) / self.ranks
        self.sent.append(sent)
        seconds, blocks = (0.0, 0) if self.wire is None else (self.wire.seconds(sent), self.wire.blocks)

        def move_all() -> None:
            with torch.no_grad():
                for result, source in pairs:
                    move(result, source)

        buffers = [tensor for pair in pairs for tensor in pair]
        return _Flight(self.device.fly(kind, move_all, seconds, blocks), buffers)

    def alltoall_base(self, result: torch.Tensor, source: torch.Tensor, *_: Any) -> Any:
        """What is received is what is sent."""
        return self._launch("all_to_all", [(result, source)], source.nbytes, _repeat)

    def allreduce(self, tensors: Sequence[torch.Tensor], *_: Any) -> Any:
        """In place."""

        def add_up(result: torch.Tensor, _: torch.Tensor) -> object:
            return result.mul_(self.ranks)

        return self._launch("all_reduce", [(one, one) for one in tensors], 2 * _bytes(tensors), add_up)

    def gathers(self, results: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], *_: Any) -> Any:
        """Of each tensor, all ranks' are this one's."""
        return self._launch("all_gather", list(zip(results, sources, strict=True)), _bytes(results), _repeat)

    def scatters(self, results: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], *_: Any) -> Any:
        """Of each tensor, this rank's part of the sum."""

        def own_part(result: torch.Tensor, source: torch.Tensor) -> object:
            return torch.mul(source.view(self.ranks, *result.shape)[0], self.ranks, out=result)

        return self._launch("reduce_scatter", list(zip(results, sources, strict=True)), _bytes(sources), own_part)

    def gather(self, result: torch.Tensor, source: torch.Tensor, *_: Any) -> Any:
        """Of one tensor."""
        return self.gathers([result], [source])

    def scatter_(self, result: torch.Tensor, source: torch.Tensor, *_: Any) -> Any:
        """Of one tensor."""
        return self.scatters([result], [source])

    # The names have changed with torch 2.13.
    all_to_all_single = alltoall_base
    _allgather_base = all_gather_single = gather
    _reduce_scatter_base = reduce_scatter_single = scatter_
    allgather_into_tensor_coalesced = all_gather_single_coalesced = gathers
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced = scatters


@contextmanager
def emulated(size: int, device: Device) -> Iterator[EmulatedLink]:
    """Within the block, this process is rank 0 of a world of `size`."""
    if NAME not in dist.Backend.backend_list:
        made = dist.Backend.register_backend
        made(NAME, lambda store, rank, count, timeout: EmulatedLink(rank, count, device), devices=["cpu", "cuda"])
    dist.init_process_group(NAME, store=dist.HashStore(), rank=0, world_size=size)
    try:
        group = dist.group.WORLD
        assert isinstance(group, EmulatedLink)
        group.setGroupName(dist.distributed_c10d._world.pg_names[group])
        yield group
    finally:
        dist.destroy_process_group()


@contextmanager
def alone(device: Device) -> Iterator[dist.ProcessGroup]:
    """Within the block, this process is a world of one rank, joined by the device's own library."""
    dist.init_process_group(device.backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def profile_of(known: HardwareProfile, wire: Wire, ranks: int) -> HardwareProfile:
    """`known`, but for its links, which are `wire`."""
    kinds = [one.name for one in fields(PerCollective)]
    link = replace(
        known.intra_node,
        bandwidth=wire.bandwidth,
        efficiency=PerCollective(**dict.fromkeys(kinds, 1.0)),
        latency=PerCollective(**dict.fromkeys(kinds, wire.alpha)),
        step_latency=0.0,
        peer_bandwidth=None,
        interference=None,
        duplex=None,
        correction=None,
    )
    links = ("intra_node", "inter_node")
    kept = {path: text for path, text in known.sources.items() if path.split(".")[0] not in links}
    sources = {**kept, **dict.fromkeys(links, "what the emulated link does")}
    per_node = max(known.ranks_per_node, ranks)
    return replace(known, intra_node=link, inter_node=link, ranks_per_node=per_node, sources=sources)


def _repeat(result: torch.Tensor, source: torch.Tensor) -> object:
    """What was sent, again and again, as much as there is room for."""
    if result.numel() == source.numel():
        return result.copy_(source.view_as(result))
    if not source.numel():
        return result.zero_()
    times = -(-result.numel() // source.numel())
    return result.copy_(source.reshape(-1).repeat(times)[: result.numel()].view_as(result))


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(one.nbytes for one in tensors)
