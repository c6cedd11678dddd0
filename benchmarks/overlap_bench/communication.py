"""The communication of a step by itself: its collectives one after another, and nothing else.

Contract: `communication` makes a callable that repeats the given exchanges over the group of all ranks; every rank
gives the list that its own step has made (`replay.py`), so that the sizes fit together. Every other rank starts each
one a moment late, as ranks of a real step do: gloo's all-to-all takes half as long if all start together, which is
chance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from overlap_bench.replay import ALL_REDUCE, Exchange

LATE = 0.5e-3
"""Seconds; more than a message takes to the other side."""


def communication(exchanges: Sequence[Exchange]) -> Callable[[], None]:
    """All exchanges, one after another."""
    runs = [_run(exchange) for exchange in exchanges]
    late = LATE * (dist.get_rank() % 2)

    def run() -> None:
        for one in runs:
            time.sleep(late)
            one()

    return run


def _run(exchange: Exchange) -> Callable[[], object]:
    sent = torch.zeros(exchange.sent // exchange.row, exchange.row, dtype=exchange.dtype)
    if exchange.kind == ALL_REDUCE:
        return lambda: dist.all_reduce(sent)
    received = torch.empty(exchange.received // exchange.row, exchange.row, dtype=exchange.dtype)
    rows = list(exchange.received_rows) or None, list(exchange.sent_rows) or None
    return lambda: dist.all_to_all_single(received, sent, *rows)
