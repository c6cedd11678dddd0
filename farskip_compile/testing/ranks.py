# SPDX-License-Identifier: Apache-2.0
"""Do all ranks compile the same model in the same way? Asked before anything runs, so that nothing can hang.

Contract: every rank of a process group calls the assertion and captures its model, which is not run. What the ranks
found is compared through `torch.distributed`; the assertion fails on all of them or on none, also if the model is
refused on one of them. A failure says which ranks differ, in what, and shows the first difference.

Algorithm: all ranks exchange hashes, and the collectives of each process group. If those differ, the lowest ranks of
each of the first few kinds show what theirs stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist

from farskip_compile._compat.distributed import SILENT_BACKENDS, world_group
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.testing.drawing import drawing, wrong_rows
from farskip_compile.testing.failure import captured, failure, some
from farskip_compile.testing.fingerprint import CompileFingerprint, GroupOrder, fingerprint

MOST_KINDS = 3
"""Of ranks that differ from each other, so many are shown."""


def assert_same_on_all_ranks(
    model: Callable[..., Any],
    *args: Any,
    group: dist.ProcessGroup | None = None,
    config: FarSkipConfig | None = None,
    **kwargs: Any,
) -> None:
    """Assert that all ranks have the same graph, table, collectives and configuration. All of them must call it.

    Ranks may differ in numbers, such as a rank's own slice of a tensor, and in what process groups are called.

    Args:
        model: a module, or a function that calls one; captured, not run.
        *args: example inputs of this rank.
        group: the ranks that are compared; None: all.
        config: what to compile with. Of a model compiled with farskip, what it was compiled with counts.
        **kwargs: example inputs by name.

    Raises:
        AssertionError: on every rank, if any two differ, or if the model is refused on one of them; or there is no
            process group, or nobody else in it.
    """
    world = world_group()
    compared = group if group is not None else world
    if compared is None or compared.size() < 2 or dist.get_backend(compared) in SILENT_BACKENDS:
        raise failure(
            "there are no other ranks to compare with: torch.distributed is not initialised, or has one rank, or sends "
            "nothing",
            way_out="torchrun --nproc-per-node 2, and init_process_group with gloo or nccl",
        )
    mine: CompileFingerprint | None = None
    refusal: AssertionError | None = None
    try:
        mine = fingerprint(captured(model, args, kwargs, config or FarSkipConfig(inner="eager")))
    except AssertionError as error:
        refusal = error
    except Exception as error:  # the other ranks must not wait for this one
        refusal = AssertionError(f"{type(error).__name__}: {error}")
        refusal.__cause__ = error
    ranks = dist.get_process_group_ranks(compared)
    texts = _gather(str(refusal) if refusal is not None else None, compared)
    if any(text is not None for text in texts):
        raise _refused(ranks, texts, refusal) from refusal
    assert mine is not None
    digests = _gather(mine.digests(), compared)
    kinds, apart = _kinds(digests), _first_order_apart(ranks, _gather(mine.orders, compared))
    if len(kinds) == 1 and apart is None:
        return
    shown = [members[0] for members in kinds[:MOST_KINDS]]
    prints = _gather(mine if dist.get_rank(compared) in shown else None, compared)
    raise _differ(ranks, digests, kinds[:MOST_KINDS], {place: prints[place] for place in shown}, apart)


def _gather(value: Any, group: dist.ProcessGroup) -> list[Any]:
    gathered: list[Any] = [None] * group.size()
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def _kinds(digests: Sequence[Mapping[str, str]]) -> list[list[int]]:
    """Places of the ranks that agree in everything, the largest set first."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for place, digest in enumerate(digests):
        kinds.setdefault(tuple(digest.values()), []).append(place)
    return sorted(kinds.values(), key=lambda members: (-len(members), members[0]))


def _first_order_apart(ranks: Sequence[int], orders: Sequence[Mapping[str, GroupOrder]]) -> tuple[str, int, int] | None:
    """A process group and the places of two ranks of it that would launch different collectives on it."""
    groups = {name: order.ranks for one in orders for name, order in one.items()}
    nothing = GroupOrder((), ())
    for name in sorted(groups):
        members = [place for place, rank in enumerate(ranks) if rank in groups[name]]
        for place in members[1:]:
            if orders[place].get(name, nothing).launches != orders[members[0]].get(name, nothing).launches:
                return name, members[0], place
    return None


def _refused(ranks: Sequence[int], texts: Sequence[str | None], refusal: AssertionError | None) -> AssertionError:
    refused = [place for place, text in enumerate(texts) if text is not None]
    headline = f"the model is refused on {_ranks(ranks, refused)} of {len(ranks)}"
    return AssertionError(f"{headline}\nrank {ranks[refused[0]]}: {texts[refused[0]] if refusal is None else refusal}")


def _differ(
    ranks: Sequence[int],
    digests: Sequence[Mapping[str, str]],
    kinds: Sequence[Sequence[int]],
    prints: Mapping[int, CompileFingerprint],
    apart: tuple[str, int, int] | None,
) -> AssertionError:
    most, *others = (members[0] for members in kinds)
    differing = {o: [name for name in digests[most] if digests[o][name] != digests[most][name]] for o in others}
    subjects = [name for name in digests[most] if any(name in names for names in differing.values())]
    parts: list[str] = []
    for members, (other, names) in zip(kinds[1:], differing.items(), strict=True):
        parts.append(f"{_ranks(ranks, members)} against {_ranks(ranks, kinds[0])}:")
        for name in names:
            both = prints[most].parts[name], prints[other].parts[name]
            parts.append(_first_difference(name, ranks[most], both[0], ranks[other], both[1]))
        parts.append(_drawn(prints[most], prints[other], ranks[other]))
    if apart is not None:
        name, one, other = apart
        subjects.append("order of collectives")
        parts.append(f"ranks {ranks[one]} and {ranks[other]} launch different collectives on process group {name!r}")
        if one in prints and other in prints:
            orders = [prints[place].orders.get(name, GroupOrder((), ())).launches for place in (one, other)]
            parts.append(_first_difference("launches", ranks[one], orders[0], ranks[other], orders[1]))
    return failure(
        f"{len(ranks)} ranks do not compile the same: they differ in {' and '.join(subjects)}",
        *parts,
        way_out="every rank must build the same model, and compile it with the same options and versions; control flow "
        "must not depend on the rank",
    )


def _first_difference(name: str, one: int, mine: Sequence[str], other: int, theirs: Sequence[str]) -> str:
    place = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    lines = [f"{name}, line {place + 1} of {len(mine)} and {len(theirs)}:"]
    for rank, text in ((one, mine), (other, theirs)):
        lines.append(f"  rank {rank}: {text[place] if place < len(text) else '(nothing)'}")
    return "\n".join(lines)


def _drawn(one: CompileFingerprint, other: CompileFingerprint, rank: int) -> str:
    """The table of the other rank, in which the cells are marked that differ from the one of most ranks."""
    table, theirs = one.report.table, other.report.table
    expected, reads = ({row.name: row.reads for row in found.rows} for found in (table, theirs))
    if list(expected) != list(reads) or one.report.terms != other.report.terms:
        return ""
    wrong = wrong_rows(theirs, reads, expected)
    return f"the table of rank {rank}:\n{drawing(theirs, reads, wrong)}" if wrong else ""


def _ranks(ranks: Sequence[int], places: Sequence[int]) -> str:
    names = some([str(ranks[place]) for place in places], 8)
    return f"ranks {names}" if len(places) > 1 else f"rank {names}"
