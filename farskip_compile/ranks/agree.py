# SPDX-License-Identifier: Apache-2.0
"""All ranks must launch the same collectives in the same order: checked once for each graph, at its first run.

In:    an `Announcement`, out of the compiled graph itself, so that it is there on a warm cache too.
Out:   nothing, once all ranks of each process group are about to do the same, with the same in common
       (`common_options`) and with tensors of the same sizes; they compare it through the group's store. If two ranks
       wait for each other with different orders, sizes or options, both raise an `OrderMismatchError` that shows both,
       instead of hanging. A rank that waits for one that has failed, or never arrives, raises a `RankFailedError`.
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

Orders with other sizes are different ones. One whose sizes are symbolic, or may differ between ranks, is the same as
each with its launches.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from farskip_compile._compat.distributed import StoreClient, StoreLost, process_group_store, world_group
from farskip_compile.errors import OptionsMismatchError, OrderMismatchError, RankFailedError
from farskip_compile.ranks.announce import LIBRARY, Announcement, Sizes
from farskip_compile.ranks.common import differences
from farskip_compile.ranks.failures import failure_among, report_failure
from farskip_compile.ranks.stale import refuse_stale
from farskip_compile.report.schedule import listener, publish_schedule
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
    if (taken := listener()) is not None:
        taken(Announcement.from_text(text).report)
    if _is_checked(text):
        return
    announced = Announcement.from_text(text)

    def run() -> None:
        with report_failure("gave up"):
            refuse_stale(announced)
        publish_schedule(announced.report)
        if announced.check:
            check_across_ranks(announced.report.orders, announced.report.phase, announced.common, announced.sizes)

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
    """As JSON: the phase, the launches, what the ranks must have in common, and the sizes."""
    new: frozenset[str]
    """Keys of this place that this rank has not noted before."""

    @property
    def name(self) -> str:
        """In the store: `ORDER/SIZES`."""
        return _name(self.order)

    def enter(self) -> None:
        """Step 1."""
        for key in self.new:
            self.client.set(key, "1")
        self.client.set(_at(self.client.rank), f"{next(_waits)} {self.name} {self.order}")

    def leave(self, *, still_waiting: bool = False, failed: bool = False) -> None:
        """Step 4."""
        if not still_waiting:
            self.client.set(_at(self.client.rank), "")
        if failed:
            for key in self.new:
                self.client.remove(key)


ANY = "any"
"""In the name of a place whose sizes are not fixed."""


def _place(client: StoreClient, order: str) -> _Place:
    base, _, _ = _name(order).partition("/")
    keys = {_got(base, client.rank), _got(_name(order), client.rank)}
    return _Place(client, order, frozenset(key for key in keys if not client.has(key)))


def _name(order: str) -> str:
    *what, sizes = json.loads(order)
    return f"{_hash(what)}/{_hash(sizes) if sizes is not None else ANY}"


def _hash(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _have_reached(client: StoreClient, ranks: Sequence[int], name: str) -> bool:
    """Whether all of `ranks` have been at the place `name`, or at one that may be the same."""
    base, _, sizes = name.partition("/")
    if client.has(*(_got(base if sizes == ANY else name, rank) for rank in ranks)):
        return True
    return sizes != ANY and all(
        client.has(_got(name, rank)) or client.has(_got(f"{base}/{ANY}", rank)) for rank in ranks
    )


def _got(name: str, rank: int) -> str:
    return f"farskip/got/{name}/{rank}"


def _at(rank: int) -> str:
    return f"farskip/at/{rank}"


def check_across_ranks(
    orders: Mapping[str, list[str]],
    phase: str,
    common: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Sizes] | None = None,
) -> None:
    """Return once every rank of each group has reached the same order, with the same in common.

    `orders` are the launches of each process group, `sizes` those of their tensors; `phase` is `forward`, `backward` or
    `inference`.

    Raises:
        OptionsMismatchError: a rank waits with something else in common.
        OrderMismatchError: a rank waits at another order, or at other sizes.
        RankFailedError: a rank has failed, or did not arrive within the timeout of the group; or the store is lost.
    """
    places: list[_Place] = []
    with report_failure("gave up"):
        try:
            for group in sorted(orders):
                client = process_group_store(group)
                if client is not None:  # None: one rank, or a group that does not communicate
                    what = [phase, orders[group], dict(common or {}), (sizes or {}).get(group)]
                    places.append(_place(client, json.dumps(what, sort_keys=True)))
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
    client, name = place.client, place.name
    others = [rank for rank in range(len(client.ranks)) if rank != client.rank]
    deadline = time.monotonic() + client.timeout_seconds
    while not _have_reached(client, others, name):
        missing = [rank for rank in others if not _have_reached(client, [rank], name)]
        # read before the places: a rank notes where it stands before it fails, and a mismatch says more than a failure
        failure = failure_among([client.ranks[rank] for rank in missing])
        for rank in missing:
            there = client.get(_at(rank))
            theirs, _, their_order = there.partition(" ")[2].partition(" ")
            met = not there or _have_reached(client, [client.rank], theirs)
            # asked again: it may have been here, found everybody, and gone on to where it is since `missing` was made
            if not met and (client.group, rank, there) not in _seen and not _have_reached(client, [rank], name):
                _seen.add((client.group, rank, there))
                raise _mismatch(place, client.ranks[rank], their_order)
        if failure is not None:
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
    (*ours, our_common, _), (*theirs, their_common, _) = json.loads(place.order), json.loads(their_order)
    different = list(differences(our_common, their_common))
    orders = f"rank {me}: {_numbered(place.order, their_order)}\nrank {rank}: {_numbered(their_order, place.order)}"
    if different:
        lines = [f"  {name}: rank {me} has {mine}, rank {rank} has {its}" for name, mine, its in different]
        return OptionsMismatchError(
            f"ranks {me} and {rank} have compiled different things for process group {group!r}\n"
            + "\n".join(lines if ours == theirs else [*lines, orders]),
            way_out="every rank must compile the same model with the same options, the same hardware profile and the "
            "same versions",
        )
    what = "different collectives"
    way_out = (
        "every rank must compile the same model with the same options, the same hardware profile and the same version "
        "of this package; control flow must not depend on the rank"
    )
    if ours == theirs:
        what = "collectives of different sizes"
        way_out = "every rank must be given inputs of the same size: pad them, or leave the last batch out"
    return OrderMismatchError(
        f"ranks {me} and {rank} would launch {what} on process group {group!r} and hang\n{orders}", way_out=way_out
    )


def _numbered(order: str, other: str | None) -> str:
    """One line for each launch; the first one that differs is marked."""
    phase, launches = _written(order)
    other_phase, other_launches = _written(other) if other is not None else (phase, launches)
    lines = [f"{phase}, {amount(len(launches), 'collective')}"]
    marked = phase != other_phase
    for number, launch in enumerate(launches):
        differs = number >= len(other_launches) or other_launches[number] != launch
        lines.append(f"  {'>' if differs and not marked else ' '} {number}: {launch}")
        marked = marked or differs
    if not marked and len(other_launches) > len(launches):
        lines.append(f"  > {len(launches)}: (nothing)")
    return "\n".join(lines)


def _written(order: str) -> tuple[str, list[str]]:
    """The phase, and each launch, with its sizes if they are fixed: `all_reduce sum float32 4x16`."""
    phase, launches, _, sizes = json.loads(order)
    if sizes is None:
        return phase, launches
    return phase, [
        " ".join([launch, *("x".join(map(str, size)) for size in own)])
        for launch, own in zip(launches, sizes, strict=True)
    ]
