# SPDX-License-Identifier: Apache-2.0
"""Bring every row to the rank that holds its expert (dispatch), and the result back (combine).

    received, receipt = dispatch(rows, expert_of_row, experts=64, group=group, slots=room)    # or without `slots`
    results = [my_expert(e, received[e]) for e in range(len(received))]                       # or one batched product
    output = combine(results, receipt)                                                        # in the order of `rows`

`rows` [R, D] are token copies, one per chosen expert; `expert_of_row` [R] names the expert. Rank i of the group holds
the experts i * E / ranks to (i + 1) * E / ranks - 1. There are two recipes:

Padded (`slots` is given): room for `slots` rows per expert and source rank, so that all sizes are known in advance.
    1. Number the rows of each expert 0, 1, 2, ...: that is the row's slot.
    2. Lay the rows out as [experts, slots, D]; empty slots stay zero, rows beyond the last slot are dropped.
    3. All-to-all: each rank keeps the blocks of its own experts, from all ranks.
    Back: all-to-all, then pick each row out of its slot.

Dropless (`slots` is None): no room is wasted and nothing is dropped, but the sizes depend on the data.
    1. Count the rows of each expert, exchange the counts, and read them on the host (one synchronisation).
    2. Sort the rows by expert.
    3. All-to-all with as many rows for each rank as its experts got.
    4. Gather what each local expert got, from all ranks.
    Back: the same steps undone in reverse order, with the splits transposed.

Contract: differentiable; captured whole by torch.compile (`fullgraph=True`), where each all-to-all is a launch and a
wait that the compiler may move apart. No group means one rank that holds all experts. Impossible arguments are errors
here, not hangs later; what depends on the data (an expert's number out of range) is not checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple, overload

import torch
import torch.distributed as dist
import torch.nn.functional as F

from farskip_compile._compat import collectives
from farskip_compile.errors import ConfigError, ParallelismError, refuse

__all__ = ["DroplessReceipt", "PaddedReceipt", "Receipt", "combine", "dispatch", "expert_group"]

GroupOrDefault = dist.ProcessGroup | None


class PaddedReceipt(NamedTuple):
    """What combine needs to know about a padded dispatch."""

    place: torch.Tensor
    """Index of each row in the flattened buffer, [R]; one past the end for a dropped row."""
    local_experts: int
    """Experts of this rank."""
    rows_per_expert: int
    """Places that each of them has: slots, times ranks."""
    group: GroupOrDefault
    """The ranks that share the experts."""


class DroplessReceipt(NamedTuple):
    """What combine needs to know about a dropless dispatch."""

    order: torch.Tensor
    """Rows sorted by expert: entry i is the row that was sent in place i, [R]."""
    sent: list[int]
    """Rows sent to each rank."""
    received: list[list[int]]
    """Rows received, by source rank and local expert."""
    group: GroupOrDefault
    """The ranks that share the experts."""


Receipt = PaddedReceipt | DroplessReceipt


@overload
def dispatch(
    rows: torch.Tensor, expert_of_row: torch.Tensor, *, experts: int, group: GroupOrDefault, slots: int
) -> tuple[torch.Tensor, PaddedReceipt]: ...
@overload
def dispatch(
    rows: torch.Tensor, expert_of_row: torch.Tensor, *, experts: int, group: GroupOrDefault, slots: None = None
) -> tuple[list[torch.Tensor], DroplessReceipt]: ...
def dispatch(
    rows: torch.Tensor, expert_of_row: torch.Tensor, *, experts: int, group: GroupOrDefault, slots: int | None = None
) -> tuple[torch.Tensor, PaddedReceipt] | tuple[list[torch.Tensor], DroplessReceipt]:
    """Bring rows to their experts, over one all-to-all (and one of the counts, if dropless).

    Args:
        rows: [R, D]; each rank may have another R.
        expert_of_row: [R], integer, 0 to `experts` - 1. A padded dispatch drops a row with any other number.
        experts: number of experts on all ranks together.
        group: the ranks that share the experts, all of which make this call; None: this process has them all.
        slots: padded: room for the rows that one rank sends to one expert, the same on all ranks. None: dropless.

    Returns:
        What this rank's experts got, one entry per local expert, and the receipt for `combine`. Padded: one tensor
        [local experts, ranks * slots, D]. Dropless: a list of tensors [rows of this expert, D].

    Raises:
        ConfigError: a wrong shape or dtype, or no room.
        ParallelismError: the experts can't be divided among the ranks, or this process is not one of them.
    """
    local_experts = _local_experts(experts, group)
    if rows.dim() != 2 or expert_of_row.dim() != 1 or rows.shape[0] != expert_of_row.shape[0]:
        refuse(
            ConfigError,
            f"dispatch takes rows [R, D] and expert_of_row [R] with one R, and got {rows.dim()} and "
            f"{expert_of_row.dim()} dimensions or unequal R",
            way_out="flatten tokens and their top-k copies into one dimension first",
        )
    if expert_of_row.is_floating_point() or expert_of_row.is_complex() or expert_of_row.dtype == torch.bool:
        refuse(
            ConfigError,
            f"expert_of_row holds {expert_of_row.dtype}, and experts are numbered by integers",
            way_out="pass the indices that topk returns, not the weights",
        )
    if slots is None:
        return _dispatch_dropless(rows, expert_of_row.long(), experts, local_experts, group)
    if slots < 1:
        refuse(ConfigError, f"slots must be at least 1, not {slots}", way_out="leave it out for a dropless exchange")
    return _dispatch_padded(rows, expert_of_row.long(), experts, local_experts, slots, group)


def combine(outputs: torch.Tensor | Sequence[torch.Tensor], receipt: Receipt) -> torch.Tensor:
    """Bring the results of the experts back to the ranks and into the order of the dispatched rows.

    Args:
        outputs: for each local expert its results, row by row as `dispatch` gave them; the width may be another one.
            After a padded dispatch [local experts, ranks * slots, D] (a list of such blocks is stacked).
        receipt: from `dispatch`.

    Returns:
        [R, D], row i for row i of the dispatched rows; zeros for a row that was dropped.

    Raises:
        ConfigError: `outputs` does not fit the receipt.
    """
    if isinstance(receipt, PaddedReceipt):
        buffer = outputs if isinstance(outputs, torch.Tensor) else torch.stack(list(outputs))
        places = [receipt.local_experts, receipt.rows_per_expert]
        if buffer.dim() != 3 or list(buffer.shape[:2]) != places:
            refuse(
                ConfigError,
                f"combine takes {places} and a width, [local experts, rows, D], not {list(buffer.shape)}",
                way_out="give each local expert's rows back in the places where dispatch put them",
            )
        return _combine_padded(buffer, receipt)
    segments = list(outputs)
    if len(segments) != len(receipt.received[0]):
        refuse(
            ConfigError,
            f"combine takes one tensor for each of the {len(receipt.received[0])} local experts, not {len(segments)}",
            way_out="an expert that got no rows returns none: keep its empty tensor in the list",
        )
    if not torch.compiler.is_compiling():  # a compiler does not know the sizes yet
        for expert, segment in enumerate(segments):
            rows = sum(per_rank[expert] for per_rank in receipt.received)
            if segment.shape[0] != rows:
                refuse(ConfigError, f"local expert {expert} got {rows} rows and returns {segment.shape[0]}")
    return _combine_dropless(segments, receipt)


def expert_group(group: dist.ProcessGroup, *, timeout: timedelta | None = None) -> dist.ProcessGroup:
    """A new process group over the ranks of `group`, for expert parallelism alone.

    Collectives of one group run one after another: a dispatch that follows another collective of its group starts when
    that is done, however early it was launched. In a group of its own it does not queue. Call it once at set-up, on
    *every* rank of the job (it makes the groups of all ranks, in the same order everywhere).

    Args:
        group: the ranks that share the experts with this one.
        timeout: of collectives in the new group; None: the default of the backend.

    Raises:
        ParallelismError: this process is not in `group`, or the ranks disagree about who shares experts with whom.
    """
    _refuse_strangers(group)
    own = (tuple(dist.get_process_group_ranks(group)), dist.get_backend_config(group))
    named: list[tuple[tuple[int, ...], str]] = [own] * dist.get_world_size()
    dist.all_gather_object(named, own)
    made: dict[tuple[tuple[int, ...], str], dist.ProcessGroup] = {}
    for rank, (ranks, _) in enumerate(named):
        if rank not in ranks or any(named[member] != named[rank] for member in ranks):
            raise ParallelismError(
                f"rank {rank} shares experts with {list(ranks)}, and not all of these say the same",
                way_out="call expert_group on every rank of the job, with the group that its experts are spread over",
            )
    for ranks, backend in sorted(set(named)):
        made[ranks, backend] = dist.new_group(
            list(ranks), timeout=timeout, backend=backend, group_desc="expert_parallel"
        )
    return made[own]


# Padded


def _dispatch_padded(
    rows: torch.Tensor, expert_of_row: torch.Tensor, experts: int, local_experts: int, slots: int, group: GroupOrDefault
) -> tuple[torch.Tensor, PaddedReceipt]:
    numbers = torch.arange(experts, device=expert_of_row.device)
    chosen = (expert_of_row.unsqueeze(-1) == numbers).long()  # [R, E]
    slot = (chosen.cumsum(0) * chosen).sum(-1) - 1  # [R]: how many earlier rows chose the same expert; -1: no expert
    dropped_place = experts * slots
    place = torch.where((slot >= 0) & (slot < slots), expert_of_row * slots + slot, dropped_place)  # [R]
    buffer = rows.new_zeros(dropped_place + 1, rows.shape[-1]).index_copy(0, place, rows)
    buffer = buffer[:dropped_place].unflatten(0, (experts, slots))  # [E, slots, D]
    ranks = 1 if group is None else group.size()
    receipt = PaddedReceipt(place, local_experts, ranks * slots, group)
    if group is None:
        return buffer, receipt
    received = collectives.all_to_all_single(buffer.contiguous(), None, None, group)  # [ranks * E / ranks, slots, D]
    by_source = received.unflatten(0, (ranks, -1))  # [ranks, E / ranks, slots, D]
    return by_source.transpose(0, 1).flatten(1, 2), receipt


def _combine_padded(buffer: torch.Tensor, receipt: PaddedReceipt) -> torch.Tensor:
    group = receipt.group
    if group is not None:
        by_source = buffer.unflatten(1, (group.size(), -1)).transpose(0, 1)  # [ranks, E / ranks, slots, D]
        buffer = collectives.all_to_all_single(by_source.flatten(0, 1).contiguous(), None, None, group)  # [E, slots, D]
    flat = F.pad(buffer.flatten(0, 1), (0, 0, 0, 1))  # [E * slots + 1, D]; the last row is for dropped ones
    return flat.index_select(0, receipt.place)


# Dropless


def _dispatch_dropless(
    rows: torch.Tensor, expert_of_row: torch.Tensor, experts: int, local_experts: int, group: GroupOrDefault
) -> tuple[list[torch.Tensor], DroplessReceipt]:
    # A count of static length: torch.bincount would make even the number of experts depend on the data.
    counts = expert_of_row.new_zeros(experts).scatter_add(0, expert_of_row, torch.ones_like(expert_of_row))
    order = expert_of_row.argsort(stable=True)  # [R]
    outgoing = rows.index_select(0, order)
    if group is None:
        per_expert = counts.tolist()  # waits for the device
        return list(outgoing.split(per_expert)), DroplessReceipt(order, [rows.shape[0]], [per_expert], None)
    counts_from_all = collectives.all_to_all_single(counts, None, None, group)  # [ranks * E / ranks]
    both = torch.stack([counts, counts_from_all]).unflatten(1, (group.size(), -1)).tolist()  # waits for the device
    sent, received = [sum(per_rank) for per_rank in both[0]], both[1]
    incoming = collectives.all_to_all_single(outgoing, [sum(per_rank) for per_rank in received], sent, group)
    pieces = incoming.split([count for per_rank in received for count in per_rank])  # by source, then expert
    segments = [torch.cat(pieces[expert::local_experts]) for expert in range(local_experts)]
    return segments, DroplessReceipt(order, sent, received, group)


def _combine_dropless(segments: list[torch.Tensor], receipt: DroplessReceipt) -> torch.Tensor:
    by_expert = [
        segment.split([per_rank[expert] for per_rank in receipt.received]) for expert, segment in enumerate(segments)
    ]
    outgoing = torch.cat([piece for from_rank in zip(*by_expert, strict=True) for piece in from_rank])
    incoming = outgoing  # [R, D], sorted by expert
    if receipt.group is not None:
        received = [sum(per_rank) for per_rank in receipt.received]
        incoming = collectives.all_to_all_single(outgoing, receipt.sent, received, receipt.group)
    return torch.zeros_like(incoming).index_copy(0, receipt.order, incoming)


# Checks


def _local_experts(experts: int, group: GroupOrDefault) -> int:
    if experts < 1:
        refuse(ConfigError, f"experts must be at least 1, not {experts}")
    if group is None:
        return experts
    _refuse_strangers(group)
    ranks = group.size()
    if experts % ranks:
        refuse(
            ParallelismError,
            f"{experts} experts can't be divided among {ranks} ranks",
            way_out=f"use a group whose size divides {experts}",
        )
    return experts // ranks


def _refuse_strangers(group: object) -> None:
    if not isinstance(group, dist.ProcessGroup):
        refuse(
            ParallelismError,
            f"{group!r} is not a process group that this process is a member of",
            way_out="pass what dist.new_group or mesh.get_group gave to a member of the group",
        )
