# SPDX-License-Identifier: Apache-2.0
"""Functional collectives that read their input as late as they may: when they are waited for.

Whoever reuses or overwrites memory of a collective in flight then gets a wrong result. A launch only notes what to do
and fills its output with NaN; the wait does the work, so reading the output before the wait shows as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d


@contextmanager
def late_collectives() -> Iterator[list[str]]:
    """Replace the CPU kernels of the functional collectives; yields the names of the launches as they happen."""
    pending: dict[int, Callable[[], None]] = {}
    launched: list[str] = []
    library = torch.library.Library("_c10d_functional", "IMPL")

    def launch(name: str, output: torch.Tensor, work: Callable[[], None]) -> torch.Tensor:
        launched.append(name)
        if output.is_floating_point():
            output.fill_(float("nan"))
        pending[output.data_ptr()] = work
        return output

    def all_to_all_single(x: torch.Tensor, outs: list[int], ins: list[int], group: Any) -> torch.Tensor:
        output = x.new_empty([sum(outs), *x.shape[1:]])
        pg = _group(group)
        return launch(
            "all_to_all_single", output, lambda: dist.all_to_all_single(output, x.contiguous(), outs, ins, group=pg)
        )

    def all_reduce(x: torch.Tensor, reduction: str, group: Any) -> torch.Tensor:
        output = torch.empty_like(x)

        def work() -> None:
            output.copy_(x)
            dist.all_reduce(output, op=_op(reduction), group=_group(group))

        return launch("all_reduce", output, work)

    def all_reduce_(x: torch.Tensor, reduction: str, group: Any) -> torch.Tensor:
        kept = x.clone()  # in place: the memory is the collective's own until the wait

        def work() -> None:
            dist.all_reduce(kept, op=_op(reduction), group=_group(group))
            x.copy_(kept)

        return launch("all_reduce_", x, work)

    def all_gather_into_tensor(x: torch.Tensor, size: int, group: Any) -> torch.Tensor:
        output = x.new_empty([size * x.shape[0], *x.shape[1:]])
        pg = _group(group)
        return launch(
            "all_gather_into_tensor",
            output,
            lambda: dist.all_gather_into_tensor(output, x.contiguous(), group=pg),
        )

    def reduce_scatter_tensor(x: torch.Tensor, reduction: str, size: int, group: Any) -> torch.Tensor:
        output = x.new_empty([x.shape[0] // size, *x.shape[1:]])
        pg = _group(group)
        return launch(
            "reduce_scatter_tensor",
            output,
            lambda: dist.reduce_scatter_tensor(output, x.contiguous(), op=_op(reduction), group=pg),
        )

    def wait_tensor(x: torch.Tensor) -> torch.Tensor:
        work = pending.pop(x.data_ptr(), None)
        if work is not None:
            work()
        return x

    kernels = [all_to_all_single, all_reduce, all_reduce_, all_gather_into_tensor, reduce_scatter_tensor, wait_tensor]
    for kernel in kernels:
        library.impl(kernel.__name__, kernel, "CPU", allow_override=True)
    try:
        yield launched
        assert not pending, f"{len(pending)} collectives were never waited for"
    finally:
        library._destroy()


def _group(group: Any) -> Any:
    return distributed_c10d._resolve_process_group(group)


def _op(reduction: str) -> Any:
    return {"sum": dist.ReduceOp.SUM, "avg": dist.ReduceOp.AVG}[reduction.lower()]
