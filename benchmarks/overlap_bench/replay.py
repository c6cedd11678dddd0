"""A process group that sends nothing and replays recorded results: the compute of a step alone.

Contract: while it records, a collective runs on all ranks of the job as usual and its result is kept; afterwards the
collectives of a step return these results in the same order and wait for nobody. So a model compiled on this group runs
the same kernels on the same numbers and sizes. Copying a result stays in the measured time, as a rank would copy its
own share. `exchanges` records what was sent, to be repeated over a real group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

from farskip_compile.costs import CollectiveKind

BACKEND = "farskip_replay"
ALL_TO_ALL: Final = "all_to_all"
ALL_REDUCE: Final = "all_reduce"


@dataclass(frozen=True)
class Exchange:
    """One collective, as one rank sees it."""

    kind: CollectiveKind
    sent: int
    """Elements that this rank sends."""
    received: int
    """Elements that it receives."""
    dtype: torch.dtype
    sent_rows: tuple[int, ...] = ()
    """Rows for each rank; empty: equal shares."""
    received_rows: tuple[int, ...] = ()
    row: int = 1
    """Elements in a row."""

    def bytes_out(self, rank: int, ranks: int) -> float:
        """Bytes that leave this rank, by the usual algorithms."""
        if self.kind == ALL_REDUCE:
            return 2 * self.sent * self.dtype.itemsize * (ranks - 1) / ranks
        kept = self.sent_rows[rank] * self.row if self.sent_rows else self.sent / ranks
        return (self.sent - kept) * self.dtype.itemsize


def imbalance(ranks: Sequence[Sequence[Exchange]]) -> float:
    """Rows that the fullest rank receives in a dispatch, or sends in a combine, over the mean; the maximum over the
    exchanges of all `ranks`. 1 if all are equal, or if there are none.
    """
    most = 1.0
    for exchange in zip(*ranks, strict=True):
        rows = [max(sum(one.sent_rows), sum(one.received_rows)) for one in exchange]
        mean = sum(sum(one.sent_rows) for one in exchange) / len(exchange)
        most = max(most, max(rows) / mean if mean else 1.0)
    return most


class Done(dist.Work):
    """A finished collective."""

    def __init__(self) -> None:
        super().__init__()

    def wait(self, timeout: timedelta = timedelta()) -> bool:
        """Return at once."""
        return True

    def is_completed(self) -> bool:
        """Always."""
        return True


class Replay(dist.ProcessGroup):
    """The group; make it with `replay_group`."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self.exchanges: list[Exchange] = []
        """Of one step."""
        self._results: list[torch.Tensor] = []
        self._recording = True
        self._next = 0
        self._name = ""

    def record(self) -> None:
        """From now on send, and keep the results."""
        self.exchanges.clear()
        self._results.clear()
        self._recording = True

    def rewind(self) -> None:
        """From now on replay the recorded results from the start."""
        self._recording = False
        self._next = 0

    def alltoall_base(
        self, output: torch.Tensor, sent: torch.Tensor, output_splits: list[int], splits: list[int], options: Any = None
    ) -> Done:
        """Called by the all-to-alls of a model."""
        if self._recording:
            dist.all_to_all_single(output, sent, list(output_splits) or None, list(splits) or None)
            row = sent[0].numel() if sent.dim() > 1 and len(sent) else 1
            rows = tuple(splits), tuple(output_splits)
            self._remember(Exchange(ALL_TO_ALL, sent.numel(), output.numel(), sent.dtype, *rows, row), output)
        else:
            self._give(output)
        return Done()

    def allreduce(self, tensors: list[torch.Tensor], options: Any = None) -> Done:
        """Called by the all-reduces of a model."""
        for tensor in tensors:
            if self._recording:
                dist.all_reduce(tensor)
                self._remember(Exchange(ALL_REDUCE, tensor.numel(), tensor.numel(), tensor.dtype), tensor)
            else:
                self._give(tensor)
        return Done()

    def _remember(self, exchange: Exchange, result: torch.Tensor) -> None:
        self.exchanges.append(exchange)
        self._results.append(result.clone())

    def _give(self, output: torch.Tensor) -> None:
        output.copy_(self._results[self._next].view_as(output))
        self._next += 1

    def setGroupName(self, name: str) -> None:
        """Called by `dist.new_group`."""
        self._name = name

    def getGroupName(self) -> str:
        """The name by which compiled code finds the group."""
        return self._name

    def getBackendName(self) -> str:
        """What `dist.get_backend` says."""
        return BACKEND


def replay_group() -> Replay:
    """A new group over all ranks of the job; all of them call this."""
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(BACKEND, lambda store, rank, size, timeout: Replay(rank, size), devices="cpu")
    group = dist.new_group(backend=BACKEND)
    assert isinstance(group, Replay)
    return group
