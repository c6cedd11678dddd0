"""The communication of a step by itself: its collectives one after another, and nothing else.

Contract: `communication` makes a callable that repeats the given exchanges over the group of all ranks; every rank
gives the list that its own step has made (`replay.py`), so that the sizes fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from overlap_bench.replay import ALL_REDUCE, Exchange


def communication(exchanges: Sequence[Exchange]) -> Callable[[], None]:
    """All exchanges, one after another."""
    runs = [_run(exchange) for exchange in exchanges]

    def run() -> None:
        for one in runs:
            one()

    return run


def _run(exchange: Exchange) -> Callable[[], object]:
    sent = torch.zeros(exchange.sent // exchange.row, exchange.row, dtype=exchange.dtype)
    if exchange.kind == ALL_REDUCE:
        return lambda: dist.all_reduce(sent)
    received = torch.empty(exchange.received // exchange.row, exchange.row, dtype=exchange.dtype)
    rows = list(exchange.received_rows) or None, list(exchange.sent_rows) or None
    return lambda: dist.all_to_all_single(received, sent, *rows)
