# SPDX-License-Identifier: Apache-2.0
"""A process group of one real rank whose links use their buffers for as long as they may: from launch to wait.

Contract: `late_link(size)` gives rank 0 of `size`; the others are imagined, and send what this rank sends. A launch
spoils its result; the wait for it moves the data. Whoever writes to a buffer in between, or reads a result early, is
found: the first raises `BufferInFlightError` at the wait, the second computes with NaN. The same results come out in
whichever order a right program runs. Needs no second process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


class BufferInFlightError(AssertionError):
    """Something was written to a buffer that a collective had in flight."""


class _Flight(dist._Work):
    def __init__(
        self, name: str, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], move: Callable[..., None]
    ) -> None:
        super().__init__()
        self.name, self.pairs, self.move = name, pairs, move
        self.sent = [source.clone() for _, source in pairs]
        for result, source in pairs:
            if result.data_ptr() != source.data_ptr() or not source.numel():
                _spoil(result)

    def wait(self, timeout: Any = None) -> bool:
        for (result, source), sent in zip(self.pairs, self.sent, strict=True):
            in_place = result.data_ptr() == source.data_ptr()
            if not torch.equal(_bits(source), _bits(sent)):
                raise BufferInFlightError(f"what {self.name} sends was written to before it had landed")
            if not in_place and not _is_spoiled(result):
                raise BufferInFlightError(f"what {self.name} is to receive was written to before it had landed")
            self.move(result, sent)
        self.pairs = ()
        return True


class LateLink(dist.ProcessGroup):
    """See the module's contract."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self.world, self.called, self.flights = size, "", 0

    def getBackendName(self) -> str:
        return "late"

    def getGroupName(self) -> str:
        return self.called

    def setGroupName(self, name: str) -> None:
        self.called = name

    def _launch(self, name: str, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], move: Callable[..., None]) -> Any:
        self.flights += 1
        return _Flight(name, pairs, move)

    def alltoall_base(self, result: Any, source: Any, *args: Any) -> Any:
        return self._launch("an all-to-all", [(result, source)], _repeat)

    def allreduce(self, tensors: Any, *args: Any) -> Any:
        count = self.world
        return self._launch("an all-reduce", [(one, one) for one in tensors], lambda to, of: to.copy_(of * count))

    def gather(self, result: Any, source: Any, *args: Any) -> Any:
        return self._launch("an all-gather", [(result, source)], _repeat)

    def scatter_(self, result: Any, source: Any, *args: Any) -> Any:
        return self._launch("a reduce-scatter", [(result, source)], self._own_part)

    def gathers(self, results: Any, sources: Any, *args: Any) -> Any:
        return self._launch("an all-gather", list(zip(results, sources, strict=True)), _repeat)

    def scatters(self, results: Any, sources: Any, *args: Any) -> Any:
        return self._launch("a reduce-scatter", list(zip(results, sources, strict=True)), self._own_part)

    def _own_part(self, result: torch.Tensor, sent: torch.Tensor) -> None:
        result.copy_(sent.view(self.world, *result.shape)[0] * self.world)

    all_to_all_single = alltoall_base
    _allgather_base = all_gather_single = gather
    _reduce_scatter_base = reduce_scatter_single = scatter_
    allgather_into_tensor_coalesced = all_gather_single_coalesced = gathers
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced = scatters


@contextmanager
def late_link(size: int) -> Iterator[dist.ProcessGroup]:
    """A world of `size`, of which this process is rank 0."""
    if "late" not in dist.Backend.backend_list:
        dist.Backend.register_backend(
            "late", lambda store, rank, count, timeout: LateLink(rank, count), devices=["cpu", "cuda"]
        )
    dist.init_process_group("late", store=dist.HashStore(), rank=0, world_size=size)
    try:
        group = dist.group.WORLD
        assert isinstance(group, LateLink)
        group.setGroupName(dist.distributed_c10d._world.pg_names[group])
        yield group
    finally:
        dist.destroy_process_group()


def _repeat(result: torch.Tensor, sent: torch.Tensor) -> None:
    """What was sent, again and again, as much as there is room for."""
    flat = sent.reshape(-1)
    if result.numel():
        times = -(-result.numel() // max(1, flat.numel()))
        result.copy_(
            (flat.repeat(times)[: result.numel()] if flat.numel() else flat.new_zeros(result.numel())).view_as(result)
        )


def _spoil(tensor: torch.Tensor) -> None:
    tensor.fill_(math.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)


def _is_spoiled(tensor: torch.Tensor) -> bool:
    spoiled = torch.empty_like(tensor)
    _spoil(spoiled)
    return torch.equal(_bits(tensor), _bits(spoiled))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.numel() and tensor.dim() else tensor.reshape(-1)
