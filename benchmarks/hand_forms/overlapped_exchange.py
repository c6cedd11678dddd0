# SPDX-License-Identifier: Apache-2.0
"""The exchange of one layer's rows with their experts, in four steps with room for other work in between.

In:    rows [R, D] and the expert of each, as for `farskip_compile.comm.dispatch`.
Out:   the same blocks and rows, bit for bit, as from `dispatch` and `combine` of that module.
Never: communicates in `compute` or `returned`, which only wait.

    exchange = make_exchange(experts, slots)
    exchange.dispatch(rows, expert_of_row)    # permute, launch
    results = exchange.compute()              # wait, sort by local expert, run the experts, sort by rank
    exchange.combine(results)                 # launch
    rows = exchange.returned()                # wait, undo the permutation

Padded: room for `slots` rows per expert and source rank. Dropless: the rows are counted, the counts exchanged and read
on the host (the one synchronisation, arXiv 2511.11505 section 4.1) before the dispatch can be launched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
import torch.nn.functional as F

from farskip_compile.models.experts import Experts
from hand_forms.async_collectives import BackwardOrder, launch_all_to_all


class RowsInFlight(ABC):
    """One layer's rows in flight; an object is used once, its methods called in this order."""

    sent: list[int]
    """Rows to each rank."""
    received: list[int]
    """Rows from each rank."""

    def __init__(self, experts: Experts) -> None:
        self.experts = experts
        self.group = experts.ep_group
        self.ranks = 1 if self.group is None else self.group.size()

    def dispatch(self, rows: torch.Tensor, expert_of_row: torch.Tensor) -> None:
        """Launch rows [R, D] towards the experts [R]."""
        rows = self._by_rank(rows, expert_of_row)
        self._flight = launch_all_to_all(rows, self.received, self.sent, self.group, wait_at=BackwardOrder.DISPATCH)

    def compute(self) -> torch.Tensor:
        """Wait for the rows of all ranks, and run this rank's experts on them: the input of `combine`, [rows, D]."""
        return self._through_experts(self._flight.wait())

    def combine(self, results: torch.Tensor) -> None:
        """Launch the results, sorted by rank, back to where the rows came from."""
        self._flight = launch_all_to_all(results, self.sent, self.received, self.group, wait_at=BackwardOrder.COMBINE)

    def returned(self) -> torch.Tensor:
        """Wait for the results of this rank's rows, [R, D], in their order; zeros for dropped ones."""
        return self._in_order(self._flight.wait())

    @abstractmethod
    def _by_rank(self, rows: torch.Tensor, expert_of_row: torch.Tensor) -> torch.Tensor:
        """Permute rows [R, D] by rank and expert, and set `sent` and `received`."""

    @abstractmethod
    def _through_experts(self, rows: torch.Tensor) -> torch.Tensor:
        """Sort by local expert, run the experts, sort by rank."""

    @abstractmethod
    def _in_order(self, results: torch.Tensor) -> torch.Tensor:
        """Undo the permutation."""


class PaddedExchange(RowsInFlight):
    """An exchange of known sizes; rows beyond the last slot of an expert are dropped."""

    def __init__(self, experts: Experts, slots: int) -> None:
        super().__init__(experts)
        self.slots = slots
        self.sent = self.received = [experts.local_experts * slots] * self.ranks

    def _by_rank(self, rows: torch.Tensor, expert_of_row: torch.Tensor) -> torch.Tensor:
        experts, slots = self.experts.experts, self.slots
        chosen = (expert_of_row.unsqueeze(-1) == torch.arange(experts, device=rows.device)).long()  # [R, E]
        slot = (chosen.cumsum(0) * chosen).sum(-1) - 1  # [R]: how many earlier rows chose the same expert
        self.place = torch.where(slot < slots, expert_of_row * slots + slot, experts * slots)  # [R]; last: dropped
        return rows.new_zeros(experts * slots + 1, rows.shape[-1]).index_copy(0, self.place, rows)[:-1]

    def _through_experts(self, rows: torch.Tensor) -> torch.Tensor:
        by_source = rows.unflatten(0, (self.ranks, -1, self.slots))  # [ranks, E / ranks, slots, D]
        results = self.experts.all(by_source.transpose(0, 1).flatten(1, 2))  # [E / ranks, ranks * slots, D]
        return results.unflatten(1, (self.ranks, -1)).transpose(0, 1).reshape(-1, results.shape[-1])

    def _in_order(self, results: torch.Tensor) -> torch.Tensor:
        return F.pad(results, (0, 0, 0, 1)).index_select(0, self.place)


class DroplessExchange(RowsInFlight):
    """An exchange without dropped rows and unused room, whose sizes depend on the data."""

    def _by_rank(self, rows: torch.Tensor, expert_of_row: torch.Tensor) -> torch.Tensor:
        counts = expert_of_row.new_zeros(self.experts.experts).scatter_add(
            0, expert_of_row, torch.ones_like(expert_of_row)
        )
        self.order = expert_of_row.argsort(stable=True)  # [R]
        outgoing = rows.index_select(0, self.order)
        counts_from_all = torch.empty_like(counts)
        dist.all_to_all_single(counts_from_all, counts, group=self.group)
        both = torch.stack([counts, counts_from_all]).unflatten(1, (self.ranks, -1)).tolist()  # waits for the device
        self.counts: list[list[int]] = both[1]
        """Rows received, by source rank and local expert."""
        self.sent, self.received = ([sum(per_rank) for per_rank in one] for one in both)
        return outgoing

    def _through_experts(self, rows: torch.Tensor) -> torch.Tensor:
        pieces = rows.split([count for per_rank in self.counts for count in per_rank])
        local = self.experts.local_experts
        segments = self.experts.each([torch.cat(pieces[expert::local]) for expert in range(local)])
        by_expert = [
            segment.split([per_rank[expert] for per_rank in self.counts]) for expert, segment in enumerate(segments)
        ]
        return torch.cat([piece for from_rank in zip(*by_expert, strict=True) for piece in from_rank])

    def _in_order(self, results: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(results).index_copy(0, self.order, results)


def make_exchange(experts: Experts, slots: int) -> RowsInFlight:
    """Return the exchange for the model's parallelism; `slots` is the room per expert of a padded one."""
    if experts.dropless and experts.ep_group is not None:
        return DroplessExchange(experts)
    return PaddedExchange(experts, slots)
