"""All ranks must launch the same collectives in the same order: checked once for each graph, at its first run.

In:    an `Announcement`, out of the compiled graph itself, so that it is there on a warm cache too.
Out:   nothing, once all ranks of each process group are about to do the same, with the same in common
       (`common_options`); they compare it through the group's store. If two ranks wait for each other with different
       orders or options, both raise an `OrderMismatchError` that shows both, instead of hanging. A rank that waits for
       one that has failed, or never arrives, raises a `RankFailedError`.
Never: communicates over the group itself, or while compiling.

Algorithm, for each group of the graph:
1. note in the store: "I have reached this order" (for good, unless this ends in an error) and "I am waiting at this
   order" (until step 4);
2. wait until every rank has reached the same order, now or earlier: a rank may meet a graph anew that others know
   already, because it recompiled for another size;
3. meanwhile, if a rank that has not been here is waiting at an order that this rank has never reached, nobody can go
   on: raise. The same if a rank has failed (`failures`), if the timeout of the group is over, or if the store is lost;
4. take "I am waiting" back. After an `OrderMismatchError` it stays, so that the other rank sees it too; a place at
   which another rank waited when this one raised does not count again.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from farskip_compile._compat.distributed import StoreClient, StoreLost, process_group_store, world_group
from farskip_compile.errors import OptionsMismatchError, OrderMismatchError, RankFailedError
from farskip_compile.ranks.announce import LIBRARY, Announcement
from farskip_compile.ranks.common import differences
from farskip_compile.ranks.failures import failure_among, report_failure
from farskip_compile.ranks.stale import refuse_stale
from farskip_compile.report.schedule import publish_schedule
from farskip_compile.text_utils import amount

POLL_SECONDS = 0.02

_lock = threading.Lock()
_locks: dict[str, threading.Lock] = {}
"""One for each text: a check waits for other ranks, and must not keep other threads from checking other graphs."""
_checked: dict[str, weakref.ref[Any]] = {}
"""Text of each graph that has been checked -> the default process group at that time."""
_waits = itertools.count(1)
_seen: set[tuple[str, int, str]] = set()
"""Process group, rank, and the place of that rank about which this one has raised."""


def _announce(text: str) -> None:
    if _is_checked(text):
        return
    announced = Announcement.from_text(text)

    def run() -> None:
        with report_failure("gave up"):
            refuse_stale(announced)
        publish_schedule(announced.report)
        if announced.check:
            check_across_ranks(announced.report.orders, announced.report.phase, announced.common)

    check_once(text, run)


LIBRARY.impl("announce", _announce, "CompositeExplicitAutograd")


def check_once(text: str, run: Callable[[], None]) -> None:
    """Call `run`, unless that was done for the same text and default process group, and raised nothing."""
    with _lock:
        lock = _locks.setdefault(text, threading.Lock())
    with lock:
        world = world_group()
        if world is None or not _is_checked(text):
            run()
        if world is not None:
            _checked[text] = weakref.ref(world)


def _is_checked(text: str) -> bool:
    known = _checked.get(text)
    return known is not None and known() is world_group()


@dataclass(frozen=True)
class _Place:
    """Where this rank stands on one process group."""

    client: StoreClient
    order: str
    """As JSON: the phase, the launches, and what the ranks must have in common."""
    digest: str
    known: bool
    """It has reached this order before."""

    def enter(self) -> None:
        """Step 1."""
        self.client.set(_got(self.digest, self.client.rank), "1")
        self.client.set(_at(self.client.rank), f"{next(_waits)} {self.digest} {self.order}")

    def leave(self, *, still_waiting: bool = False, failed: bool = False) -> None:
        """Step 4."""
        if not still_waiting:
            self.client.set(_at(self.client.rank), "")
        if failed and not self.known:
            self.client.remove(_got(self.digest, self.client.rank))


def _got(digest: str, rank: int) -> str:
    return f"farskip/got/{digest}/{rank}"


def _at(rank: int) -> str:
    return f"farskip/at/{rank}"


def check_across_ranks(orders: Mapping[str, list[str]], phase: str, common: Mapping[str, Any] | None = None) -> None:
    """Return once every rank of each group has reached the same order, with the same in common.

    `orders` are the launches of each process group; `phase` is `forward`, `backward` or `inference`.

    Raises:
        OptionsMismatchError: a rank waits with something else in common.
        OrderMismatchError: a rank waits at another order.
        RankFailedError: a rank has failed, or did not arrive within the timeout of the group; or the store is lost.
    """
    places: list[_Place] = []
    with report_failure("gave up"):
        try:
            for group in sorted(orders):
                client = process_group_store(group)
                if client is not None:  # None: one rank, or a group that does not communicate
                    order = json.dumps([phase, orders[group], dict(common or {})], sort_keys=True)
                    digest = hashlib.sha256(order.encode()).hexdigest()
                    places.append(_Place(client, order, digest, client.has(_got(digest, client.rank))))
                    places[-1].enter()
            for place in places:
                _wait_for_all(place)
            for place in places:
                place.leave()
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


def _wait_for_all(place: _Place) -> None:
    client, digest = place.client, place.digest
    others = [rank for rank in range(len(client.ranks)) if rank != client.rank]
    keys = [_got(digest, rank) for rank in others]
    deadline = time.monotonic() + client.timeout_seconds
    while not client.has(*keys):
        missing = [rank for rank in others if not client.has(_got(digest, rank))]
        for rank in missing:
            there = client.get(_at(rank))
            theirs, _, their_order = there.partition(" ")[2].partition(" ")
            met = not there or theirs == digest or client.has(_got(theirs, client.rank))
            # asked again: it may have been here, found everybody, and gone on to where it is since `missing` was made
            if not met and (client.group, rank, there) not in _seen and not client.has(_got(digest, rank)):
                _seen.add((client.group, rank, there))
                raise _mismatch(place, client.ranks[rank], their_order)
        if (failure := failure_among([client.ranks[rank] for rank in missing])) is not None:
            raise RankFailedError(
                f"rank {failure[0]} {failure[1]}\nrank {_me(place)} waits for it in vain, {_doing(place)}",
                way_out=f"look at the error of rank {failure[0]}",
            )
        if missing and time.monotonic() > deadline:
            raise RankFailedError(
                f"rank {_me(place)} waited {client.timeout_seconds:.3g} s, the timeout of the process group, for rank "
                f"{', '.join(str(client.ranks[rank]) for rank in missing)}, {_doing(place)}",
                way_out="every rank must run the same graphs, with the same `check_order`; look at what that rank does "
                "instead: it has ended, it hangs, it still compiles, or it ran another graph",
            )
        time.sleep(POLL_SECONDS)


def _me(place: _Place) -> int:
    return place.client.ranks[place.client.rank]


def _doing(place: _Place) -> str:
    return f"to run a graph with these collectives of process group {place.client.group!r}:\n" + _numbered(
        place.order, None
    )


def _mismatch(place: _Place, rank: int, their_order: str) -> OrderMismatchError:
    me, group = _me(place), place.client.group
    different = list(differences(json.loads(place.order)[2], json.loads(their_order)[2]))
    orders = f"rank {me}: {_numbered(place.order, their_order)}\nrank {rank}: {_numbered(their_order, place.order)}"
    if different:
        lines = [f"  {name}: rank {me} has {ours}, rank {rank} has {theirs}" for name, ours, theirs in different]
        same = json.loads(place.order)[:2] == json.loads(their_order)[:2]
        return OptionsMismatchError(
            f"ranks {me} and {rank} have compiled different things for process group {group!r}\n"
            + "\n".join(lines if same else [*lines, orders]),
            way_out="every rank must compile the same model with the same options, the same hardware profile and the "
            "same versions",
        )
    return OrderMismatchError(
        f"ranks {me} and {rank} would launch different collectives on process group {group!r} and hang\n{orders}",
        way_out="every rank must compile the same model with the same options, the same hardware profile and the same "
        "version of this package; control flow must not depend on the rank",
    )


def _numbered(order: str, other: str | None) -> str:
    """One line for each launch; the first one that differs is marked."""
    phase, launches, _ = json.loads(order)
    other_phase, other_launches, _ = json.loads(other) if other is not None else (phase, launches, None)
    lines = [f"{phase}, {amount(len(launches), 'collective')}"]
    marked = phase != other_phase
    for number, launch in enumerate(launches):
        differs = number >= len(other_launches) or other_launches[number] != launch
        lines.append(f"  {'>' if differs and not marked else ' '} {number}: {launch}")
        marked = marked or differs
    if not marked and len(other_launches) > len(launches):
        lines.append(f"  > {len(launches)}: (nothing)")
    return "\n".join(lines)
