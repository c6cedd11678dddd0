"""Bring every row to the rank and expert that it is meant for (dispatch), and its result back (combine).

Two recipes with the same ingredients. `rows` [R, D] are token copies, one per chosen expert (R = T * top_k);
`expert_of_row` [R] names the expert. After combine the results lie in the order of `rows`.

Padded: room for `slots` rows per expert, so that all sizes are known beforehand.
    1. Number the rows of each expert 0, 1, 2, ...: that is the row's slot.
    2. Lay the rows out as [experts, slots, D]; empty slots stay zero, rows beyond the last slot are dropped.
    3. All-to-all: each rank keeps the block of its own experts, from everybody.
    Back: all-to-all, then pick each row out of its slot.

Dropless: no room is wasted and nothing is dropped, but the sizes depend on the data.
    1. Count the rows of each expert, tell the counts to everybody, and read them on the host (one synchronisation).
    2. Sort the rows by expert.
    3. All-to-all with as many rows for each rank as its experts got.
    4. Gather what each local expert got, from everybody.
    Back: the same steps undone in reverse order, with the splits transposed.

Contract: differentiable; captured whole by torch.compile. No group means one rank that holds all experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from farskip_compile._compat import functional_collectives as fc

Group = dist.ProcessGroup | None


class PaddedReceipt(NamedTuple):
    """What combine has to know about a padded dispatch."""

    place: torch.Tensor
    """Index of each row in the flattened buffer, [R]; one past the end for a dropped row."""
    group: Group
    """The ranks that share the experts."""


def dispatch_padded(
    rows: torch.Tensor, expert_of_row: torch.Tensor, experts: int, slots: int, group: Group
) -> tuple[torch.Tensor, PaddedReceipt]:
    """Rows [R, D] -> buffer [local experts, ranks * slots, D]. All ranks must have the same number of rows."""
    chosen = F.one_hot(expert_of_row, experts)  # [R, E]
    slot = (chosen.cumsum(0) * chosen).sum(-1) - 1  # [R]: how many earlier rows chose the same expert
    dropped_place = experts * slots
    place = torch.where(slot < slots, expert_of_row * slots + slot, dropped_place)  # [R]
    buffer = rows.new_zeros(dropped_place + 1, rows.shape[-1]).index_copy(0, place, rows)
    buffer = buffer[:dropped_place].unflatten(0, (experts, slots))  # [E, slots, D]
    receipt = PaddedReceipt(place, group)
    if group is None:
        return buffer, receipt
    received = fc.all_to_all_single(buffer.contiguous(), None, None, group)  # [ranks * E / ranks, slots, D]
    by_source = received.unflatten(0, (group.size(), -1))  # [ranks, E / ranks, slots, D]
    return by_source.transpose(0, 1).flatten(1, 2), receipt


def combine_padded(buffer: torch.Tensor, receipt: PaddedReceipt) -> torch.Tensor:
    """Buffer [local experts, ranks * slots, D] -> rows [R, D]; a dropped row comes back as zeros."""
    group = receipt.group
    if group is not None:
        by_source = buffer.unflatten(1, (group.size(), -1)).transpose(0, 1)  # [ranks, E / ranks, slots, D]
        buffer = fc.all_to_all_single(by_source.flatten(0, 1).contiguous(), None, None, group)  # [E, slots, D]
    flat = F.pad(buffer.flatten(0, 1), (0, 0, 0, 1))  # [E * slots + 1, D]; the last row is for dropped ones
    return flat.index_select(0, receipt.place)


class DroplessReceipt(NamedTuple):
    """What combine has to know about a dropless dispatch."""

    order: torch.Tensor
    """Rows sorted by expert: entry i is the row that was sent at place i, [R]."""
    sent: list[int]
    """Rows sent to each rank."""
    received: list[list[int]]
    """Rows received, by source rank and local expert."""
    group: dist.ProcessGroup
    """The ranks that share the experts."""


def dispatch_dropless(
    rows: torch.Tensor, expert_of_row: torch.Tensor, experts: int, group: dist.ProcessGroup
) -> tuple[list[torch.Tensor], DroplessReceipt]:
    """Rows [R, D] -> for each local expert, the rows [?, D] it got from all ranks."""
    ranks = group.size()
    # A count of static length: torch.bincount would make even the number of experts depend on the data.
    counts = expert_of_row.new_zeros(experts).scatter_add(0, expert_of_row, torch.ones_like(expert_of_row))
    counts_from_all = fc.all_to_all_single(counts, None, None, group)  # [ranks * E / ranks]
    both = torch.stack([counts, counts_from_all]).unflatten(1, (ranks, -1)).tolist()  # waits for the device
    sent, received = [sum(per_rank) for per_rank in both[0]], both[1]

    order = expert_of_row.argsort(stable=True)  # [R]
    outgoing = rows.index_select(0, order)
    incoming = fc.all_to_all_single(outgoing, [sum(per_rank) for per_rank in received], sent, group)
    pieces = incoming.split([count for per_rank in received for count in per_rank])  # by source, then expert
    local_experts = experts // ranks
    segments = [torch.cat(pieces[expert::local_experts]) for expert in range(local_experts)]
    return segments, DroplessReceipt(order, sent, received, group)


def combine_dropless(segments: list[torch.Tensor], receipt: DroplessReceipt) -> torch.Tensor:
    """For each local expert its results [?, D] -> rows [R, D], each back where it came from."""
    by_expert = [
        segment.split([per_rank[expert] for per_rank in receipt.received]) for expert, segment in enumerate(segments)
    ]
    outgoing = torch.cat([piece for from_rank in zip(*by_expert, strict=True) for piece in from_rank])
    received = [sum(per_rank) for per_rank in receipt.received]
    incoming = fc.all_to_all_single(outgoing, receipt.sent, received, receipt.group)  # [R, D], sorted by expert
    return torch.zeros_like(incoming).index_copy(0, receipt.order, incoming)
