"""All ranks must launch the same collectives in the same order: checked once for each graph, at its first run.

Contract: the order is written into the compiled graph itself, as the text argument of an operator that runs before
the first launch, so it is there on a warm cache too. At the first run the ranks of each process group compare what
they are about to do, through the group's store. If two ranks wait for each other with different orders, both raise an
`OrderMismatchError` that shows both, instead of hanging. Never communicates over the group itself, and never while
compiling.

Algorithm, for each group of the graph:
1. say in the store: "I have got to this order" (for good) and "I am waiting at this order" (until step 3);
2. wait until every rank has got to the same order, at this time or earlier: a rank may meet a graph anew that others
   know already, because it recompiled for another size;
3. meanwhile, if a rank is waiting at an order that this rank has never got to, nobody can go on: raise.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from farskip_compile._compat.distributed import StoreClient, process_group_store, world_group
from farskip_compile.errors import OrderMismatchError
from farskip_compile.passes import ops
from farskip_compile.schedule_report import ScheduleReport, publish_schedule

POLL_SECONDS = 0.02

_library = torch.library.Library("farskip", "FRAGMENT")
_library.define("announce(str text) -> ()")
_lock = threading.Lock()
_checked: dict[str, weakref.ref[Any]] = {}
"""Text of each graph that has been checked, with the default process group it was checked under."""


def collective_orders(graph: fx.Graph) -> dict[str, list[str]]:
    """For each process group of `graph`, its launches in order: operator, reduction and type."""
    orders: dict[str, list[str]] = {}
    for node in ops.calls(graph, ops.is_collective):
        name = ops.op_name(node).split("::")[1]
        reduction = [arg for arg in node.args[1:2] if isinstance(arg, str) and "reduce" in name]
        value = next((ops.tensor(arg) for arg in node.all_input_nodes if ops.tensor(arg) is not None), None)
        kind = [str(value.dtype).removeprefix("torch.")] if value is not None else []
        orders.setdefault(ops.process_group(node), []).append(" ".join([name, *reduction, *kind]))
    return orders


def insert_announcement(graph: fx.Graph, text: str) -> None:
    """Let `graph` announce `text` before anything else it does."""
    first = next((node for node in graph.nodes if node.op not in ("placeholder", "get_attr")), None)
    assert first is not None
    with graph.inserting_before(first):
        graph.call_function(announcement(), (text,))


def announcement() -> Any:
    """The operator `farskip::announce`."""
    return torch.ops.farskip.announce.default


def _announce(text: str) -> None:
    world = world_group()
    known = _checked.get(text)
    if known is not None and known() is world:
        return
    with _lock:
        data = json.loads(text)
        publish_schedule(ScheduleReport.from_json(data))
        if data["check"] and world is not None:
            check_across_ranks(data["orders"], data["phase"])
        if world is not None:
            _checked[text] = weakref.ref(world)


_library.impl("announce", _announce, "CompositeExplicitAutograd")
torch.library.register_fake("farskip::announce", lambda text: None, lib=_library)
torch.fx.node.has_side_effect(announcement())


def check_across_ranks(orders: Mapping[str, list[str]], phase: str) -> None:
    """Return once every rank of each group has got to the same order.

    Args:
        orders: process group -> its launches in order.
        phase: `forward`, `backward` or `inference`.

    Raises:
        OrderMismatchError: a rank waits at another order, or did not come within the timeout of the group.
    """
    waiting: list[tuple[StoreClient, str, str]] = []
    for group in sorted(orders):
        client = process_group_store(group)
        if client is None:  # one rank, or a group that does not communicate
            continue
        order = json.dumps([phase, orders[group]])
        digest = hashlib.sha256(order.encode()).hexdigest()
        client.set(f"farskip/got/{digest}/{client.rank}", "1")
        client.set(f"farskip/at/{client.rank}", f"{digest} {order}")
        waiting.append((client, digest, order))
    for client, digest, order in waiting:
        _wait_for_all(client, digest, order)
    for client, _, _ in waiting:
        client.set(f"farskip/at/{client.rank}", "")


def _wait_for_all(client: StoreClient, digest: str, order: str) -> None:
    missing = [rank for rank in range(client.size) if rank != client.rank]
    deadline = time.monotonic() + client.timeout_seconds
    while True:
        missing = [rank for rank in missing if not client.has(f"farskip/got/{digest}/{rank}")]
        if not missing:
            return
        for rank in missing:
            place = client.get(f"farskip/at/{rank}")
            theirs, _, their_order = place.partition(" ")
            if place and theirs != digest and not client.has(f"farskip/got/{theirs}/{client.rank}"):
                raise _mismatch(client, order, rank, their_order)
        if time.monotonic() > deadline:
            raise OrderMismatchError(
                f"rank {client.rank} waited {client.timeout_seconds:.0f} s for rank {missing[0]} to run a graph with "
                f"these collectives of process group {client.group!r}:\n{_numbered(order, None)}",
                way_out="every rank must run the same graphs; look at what that rank does instead",
            )
        time.sleep(POLL_SECONDS)


def _mismatch(client: StoreClient, order: str, rank: int, their_order: str) -> OrderMismatchError:
    return OrderMismatchError(
        f"ranks {client.rank} and {rank} would launch different collectives on process group {client.group!r} and hang"
        f"\nrank {client.rank}: {_numbered(order, their_order)}\nrank {rank}: {_numbered(their_order, order)}",
        way_out="every rank must compile the same model with the same options, the same hardware profile and the same "
        "version of this package; control flow must not depend on the rank",
    )


def _numbered(order: str, other: str | None) -> str:
    """One line for each launch; the first one that differs is marked."""
    phase, launches = json.loads(order)
    other_phase, other_launches = json.loads(other) if other is not None else (phase, launches)
    lines = [f"{phase}, {len(launches)} collectives"]
    marked = phase != other_phase
    for number, launch in enumerate(launches):
        differs = number >= len(other_launches) or other_launches[number] != launch
        lines.append(f"  {'>' if differs and not marked else ' '} {number}: {launch}")
        marked = marked or differs
    if not marked and len(other_launches) > len(launches):
        lines.append(f"  > {len(launches)}: (nothing)")
    return "\n".join(lines)
