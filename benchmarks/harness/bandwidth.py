# SPDX-License-Identifier: Apache-2.0
"""What a network's links and gloo's collectives on it reach, against the rate that was set.

Contract: `measure` runs on every rank and returns times; everything else is arithmetic. The *link rate* of an operation
is what each host has to send for it, whatever the algorithm, over its time:
    stream of S bytes                  S                       to the next host, over a plain TCP connection
    all-to-all of S bytes per host     (n - 1) / n * S         a share of its tensor to each of the others
    all-reduce of S bytes per host     2 * (n - 1) / n * S     reduce-scatter, then all-gather

All hosts stream at once, so every cable is full in both directions. This shows whether the limit is in force. That no
collective exceeds it is checked too, but not how close they come: between two ranks that are not exactly in step,
gloo's all-to-all sends first one way and then the other, since the message that one is ready to receive queues after
what it sends itself. Then it takes up to twice as long, on real networks as well.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from common import columns

STREAM, ALL_TO_ALL, ALL_REDUCE = "stream", "all-to-all", "all-reduce"
OPERATIONS = (STREAM, ALL_TO_ALL, ALL_REDUCE)
FLOOR, CEILING = 0.88, 1.02
"""Fractions of the set rate: the largest stream must reach the first, and nothing of that size may exceed the second.
Ethernet, IP and TCP headers take 4.4 %; a full bucket lets a millisecond's worth pass at once; a busy machine starts
slowly."""
STREAM_PORT = 28500


@dataclass(frozen=True)
class Row:
    """One collective of one size."""

    operation: str
    size: int
    """Bytes of each rank's tensor."""
    seconds: float
    """Median over repetitions, of the slowest rank."""
    spread: float
    """Interquartile range, of the same rank."""
    link_rate: float
    """Bits per second that each host sent."""

    def share(self, rate: int | None) -> float | None:
        """Fraction of the set rate."""
        return None if rate is None else self.link_rate / rate


def sizes_for(rate: int | None, longest: float = 0.4) -> list[int]:
    """Powers of four in bytes, from 64 KiB to `longest` seconds at this rate, at most 64 MiB."""
    most = 64 * 2**20 if rate is None else rate / 8 * longest
    return [size for power in range(6) if (size := 2**16 * 4**power) <= most]


def link_bytes(operation: str, size: int, hosts: int) -> float:
    """What each host has to send."""
    if operation == STREAM:
        return size
    return size * (hosts - 1) / hosts * (2 if operation == ALL_REDUCE else 1)


def measure(rank: int, addresses: Sequence[str], sizes: Sequence[int], repetitions: int) -> list[list[float]]:
    """On a rank: seconds of each repetition, by operation, then size."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rows = []
    with connected(rank, addresses, dist.barrier) as exchange:
        for operation in OPERATIONS:
            for size in sizes:
                sent = torch.full((size // 4,), float(rank))
                received = torch.empty_like(sent)
                runs: dict[str, Callable[[], Any]] = {
                    STREAM: partial(exchange, bytes(size)),
                    ALL_TO_ALL: partial(dist.all_to_all_single, received, sent),
                    ALL_REDUCE: partial(dist.all_reduce, sent),
                }
                times = []
                for _ in range(1 + repetitions):
                    dist.barrier()
                    start = time.perf_counter()
                    runs[operation]()
                    times.append(time.perf_counter() - start)
                rows.append(times[1:])
        dist.barrier()
    dist.destroy_process_group()
    return rows


@contextlib.contextmanager
def connected(rank: int, addresses: Sequence[str], barrier: Callable[[], Any]) -> Iterator[Callable[[bytes], None]]:
    """Sends data to the next host of `addresses` and receives as much from the previous one, at the same time;
    `barrier` waits for all."""
    # the rank in the port: on the loopback interface all hosts have one address
    with socket.create_server((addresses[rank], STREAM_PORT + rank), backlog=1) as server:
        barrier()
        following = (rank + 1) % len(addresses)
        out = socket.create_connection((addresses[following], STREAM_PORT + following), timeout=60)
        into, _ = server.accept()
        into.settimeout(60)

    def exchange(data: bytes) -> None:
        sender = threading.Thread(target=out.sendall, args=(data,), daemon=True)
        sender.start()
        buffer, missing = bytearray(2**20), len(data)
        while missing:
            got = into.recv_into(buffer, min(missing, len(buffer)))
            if not got:
                raise ConnectionError("the previous host closed the connection")
            missing -= got
        sender.join()

    with out, into:
        for end in (out, into):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield exchange


def rows_of(measured: Sequence[Sequence[Sequence[float]]], sizes: Sequence[int]) -> list[Row]:
    """One row for each operation and size, from what `measure` returned on each rank."""
    hosts, rows = len(measured), []
    for index, (operation, size) in enumerate((o, s) for o in OPERATIONS for s in sizes):
        times = max((rank[index] for rank in measured), key=statistics.median)
        low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
        rows.append(Row(operation, size, middle, high - low, 8 * link_bytes(operation, size, hosts) / middle))
    return rows


def verdict(rows: Sequence[Row], rate: int | None) -> tuple[bool, str]:
    """Whether the rate is in force, by the largest size of each operation; and a line with the figures."""
    if rate is None:
        return True, "no limit was set, so none was checked"
    shares = {row.operation: row.link_rate / rate for row in rows}  # the last of each operation is the largest
    figures = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
    wanted = f"of the set rate (allowed: stream {100 * FLOOR:g} to {100 * CEILING:g} %, others no more)"
    if max(shares.values()) > CEILING:
        return False, f"FAIL: the limit is not in force: {figures} {wanted}"
    if shares[STREAM] < FLOOR:
        return False, f"FAIL: the link is not the bottleneck: {figures} {wanted}"
    return True, f"PASS: the limit is in force: {figures} {wanted}"


def table(rows: Sequence[Row], rate: int | None) -> str:
    lines = [["operation", "size", "median", "spread", "Mbit/s per link", "of the rate"]]
    for row in rows:
        share = row.share(rate)
        size = f"{row.size / 2**20:g} MiB" if row.size >= 2**20 else f"{row.size / 2**10:g} KiB"
        times = [f"{1e3 * seconds:.1f} ms" for seconds in (row.seconds, row.spread)]
        rates = [f"{row.link_rate / 1e6:.0f}", "-" if share is None else f"{100 * share:.1f} %"]
        lines.append([row.operation, size, *times, *rates])
    return columns(lines)
