# SPDX-License-Identifier: Apache-2.0
"""The comparison across ranks: all must launch the same collectives in the same order, at the first run of a compile.

In:    an `Announcement`, out of the compiled graph itself, so that it is there on a warm cache too; the frame that the
       graph was compiled from (`ranks.compiles`).
Out:   nothing, once all ranks of each process group are about to launch the same collectives, with the same options
       (`common_options`) and with tensors of the same sizes; they compare through the group's store. If two ranks wait
       for each other with different orders, sizes or options, both raise an `OrderMismatchError` that shows both,
       instead of hanging. A rank that waits for a rank that has failed, or never arrives, raises a `RankFailedError`.
Never: communicates over the group itself, or while compiling.

A *place* is an epoch of a frame and an order. Algorithm, for each group of the graph:
1. note in the store: "I have reached this place" (for good, unless this ends in an error) and "I am waiting at this
   place" (until step 4);
2. wait until every rank has reached the same place, now or earlier: a rank may compile a graph again that others have
   run already, because it recompiled for another size. No rank has been at a place of a new epoch earlier;
3. meanwhile, raise if no rank can go on: a rank that has not been here is waiting at a place that this rank has never
   reached, or is in the epoch that this rank has left, at the same run of the frame or a later one. Raise too if a rank
   has failed (`failures`), if the timeout of the group is over, or if the store is lost;
4. note "I have gone on from this place". After an `OrderMismatchError` this rank goes on waiting in the store, so that
   the other rank sees it too; a place at which another rank waited when this one raised does not count again.

Orders with different sizes are different orders. An order whose sizes are symbolic, or may differ between ranks, is the
same as every order with its launches.

Limit: a rank that changes an option by itself waits for the timeout of the group: the others are in a collective, and
do not look at the store. After `WARN_SECONDS` the waiting rank says in its log which options it has changed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from farskip_compile._compat.distributed import StoreLost, process_group_store
from farskip_compile.compiler.ranks.compiles import Frame, agree_on, frame_of
from farskip_compile.compiler.ranks.failures import failure_among, report_failure
from farskip_compile.compiler.ranks.mismatch import changed, mismatch, numbered
from farskip_compile.compiler.ranks.place import RankPlace, at, have_reached, place_of
from farskip_compile.compiler.ranks.stale import refuse_stale
from farskip_compile.errors import OrderMismatchError, RankFailedError
from farskip_compile.records.announcement import LIBRARY, Announcement, LaunchSizes
from farskip_compile.records.schedule import listener, publish_schedule

log = logging.getLogger("farskip_compile")

POLL_SECONDS = 0.001, 0.02
"""The pause between two looks at the store: the first, and the longest."""
WARN_SECONDS = 30.0

_lock = threading.Lock()
_locks: dict[str, threading.Lock] = {}
"""A lock for each text: a check waits for other ranks, and must not keep other threads from checking other graphs."""
_seen: set[tuple[str, int, str]] = set()
"""The notes (process group, rank, text) about which this rank has raised."""


def _announce(text: str) -> None:
    report_to = listener()
    if report_to is not None:
        report_to(Announcement.from_text(text).report)
    groups, phase = _groups_and_phase(text)
    frame = frame_of(groups, backward=phase == "backward")
    if frame.knows(text):
        return
    announced = Announcement.from_text(text)

    def run() -> None:
        with report_failure("gave up"):
            refuse_stale(announced)
        publish_schedule(announced.report)
        if announced.check:
            check_across_ranks(announced.report.orders, phase, announced.common, announced.sizes, frame)

    check_once(frame, text, run)


LIBRARY.impl("announce", _announce, "CompositeExplicitAutograd")


@functools.cache
def _groups_and_phase(text: str) -> tuple[tuple[str, ...], str]:
    """Return the process groups and the phase of an announcement."""
    report = Announcement.from_text(text).report
    return tuple(sorted(report.orders)), report.phase


def check_once(frame: Frame, text: str, run: Callable[[], None]) -> None:
    """Call `run`, unless that was done for the same `text` in this epoch of `frame`, and raised nothing."""
    with _lock:
        lock = _locks.setdefault(text, threading.Lock())
    with lock:
        if not frame.knows(text):
            run()
        frame.note(text)


def check_across_ranks(
    orders: Mapping[str, list[str]],
    phase: str,
    common: Mapping[str, Any] | None = None,
    sizes: Mapping[str, LaunchSizes] | None = None,
    frame: Frame | None = None,
) -> None:
    """Return once every rank of each group has reached the same order, with the same options.

    Args:
        orders: the launches of each process group.
        phase: `forward`, `backward`, `inference` or `captured`.
        common: the options that the ranks must have in common.
        sizes: the sizes of the launches' tensors, for each process group.
        frame: the frame that the graph was compiled from; None: not known, so that a graph counts as compared for good.

    Raises:
        OptionsMismatchError: a rank waits with other options.
        OrderMismatchError: a rank waits at another order, or at other sizes.
        RankFailedError: a rank has failed, or did not arrive within the timeout of the group; or the store is lost.
    """
    places: list[RankPlace] = []
    frame = frame if frame is not None else frame_of((), backward=True)
    frame.forget_other_worlds()
    with report_failure("gave up"):
        try:
            for group in sorted(orders):
                client = process_group_store(group)
                if client is not None:  # None: one rank, or a group that does not communicate
                    order = [phase, orders[group], dict(common or {}), (sizes or {}).get(group)]
                    places.append(place_of(client, json.dumps(order, sort_keys=True), frame))
                    places[-1].enter()
            for place in places:
                _wait_for_all(place)
            for place in places:
                place.leave()
                agree_on(frame, place.client.group, place.epoch)
        except StoreLost as error:
            raise RankFailedError(
                f"the store that the ranks compare their collectives through can't be reached: {error}",
                way_out="the process that keeps it has ended, most often rank 0 or the launcher: look there",
            ) from error
        except BaseException as error:
            with contextlib.suppress(StoreLost):
                for place in places:
                    place.leave(still_waiting=isinstance(error, OrderMismatchError), failed=True)
            raise


def _wait_for_all(place: RankPlace) -> None:
    client, name = place.client, place.name
    others = [rank for rank in range(len(client.ranks)) if rank != client.rank]
    begin, pause, warned = time.monotonic(), POLL_SECONDS[0], False
    for rank in others:
        note = client.get(at(rank))
        if place.is_left_by(note):  # that rank waits for this one, which has run a graph of an earlier epoch again
            _raise_mismatch(place, rank, note)
    while not have_reached(client, others, name):
        missing = [rank for rank in others if not have_reached(client, [rank], name)]
        # read before the places: a rank notes where it stands before it fails, and a mismatch says more than a failure
        failure = failure_among([client.ranks[rank] for rank in missing])
        for rank in missing:
            note = client.get(at(rank))
            # checked again: since `missing` was made, the rank may have been here, found all others, and gone on
            if place.excludes(note) and not have_reached(client, [rank], name):
                _raise_mismatch(place, rank, note)
        if failure is not None:
            raise RankFailedError(
                f"rank {failure[0]} {failure[1]}\nrank {place.me} waits for it in vain, {_purpose(place)}",
                way_out=f"look at the error of rank {failure[0]}",
            )
        waited = time.monotonic() - begin
        if missing and waited > client.timeout_seconds:
            raise RankFailedError(
                f"rank {place.me} waited {client.timeout_seconds:.3g} s, the timeout of the process group, for rank "
                f"{_rank_list(place, missing)}, {_purpose(place)}{_options_changed_alone(place, missing)}",
                way_out="every rank must run the same graphs, with the same `check_order`; look at what that rank does "
                "instead: it has ended, it hangs, it still compiles, or it ran another graph",
            )
        if missing and waited > WARN_SECONDS and not warned:
            warned = True
            log.warning(
                "rank %s has waited %.3g s for rank %s, %s%s",
                *(
                    place.me,
                    waited,
                    _rank_list(place, missing),
                    _purpose(place),
                    _options_changed_alone(place, missing),
                ),
            )
        time.sleep(pause)
        pause = min(2 * pause, POLL_SECONDS[1])


def _raise_mismatch(place: RankPlace, rank: int, note: str) -> None:
    """Raise, unless this rank has raised about the same note of `rank` before."""
    seen = (place.client.group, rank, note)
    if seen in _seen:
        return
    _seen.add(seen)
    raise mismatch(place.client.group, place.me, place.order, place.client.ranks[rank], json.loads(note)["order"])


def _rank_list(place: RankPlace, ranks: Sequence[int]) -> str:
    return ", ".join(str(place.client.ranks[rank]) for rank in ranks)


def _purpose(place: RankPlace) -> str:
    return f"to run a graph with these collectives of process group {place.client.group!r}:\n{numbered(place.order)}"


def _options_changed_alone(place: RankPlace, missing: Sequence[int]) -> str:
    """Return words for the options that this rank has changed since all ranks compared the same frame, or nothing."""
    if place.previous is None:
        return ""
    options = changed(place.previous.options or {}, place.epoch.options or {})
    return (
        f"\nall ranks have run this function of the model before, and since then rank {place.me} has compiled it with "
        f"other options, and rank {_rank_list(place, missing)} has not:\n{options}"
    )
