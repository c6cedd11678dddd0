# SPDX-License-Identifier: Apache-2.0
"""What the account of memory reads off Inductor's kernels, of memory that is not one buffer of one kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from unittest import mock

import torch
from torch import fx
from torch._inductor import config as inductor_config

from farskip_compile._compat import inductor, kernel_memory
from farskip_compile.costs.sizes import SizeHints

Buffers = list[kernel_memory.KernelBuffer]
ROWS = 64
GIVEN = ROWS * 8 * 4
PRODUCT = ROWS * 24 * 4
"""Bytes of what the functions are given, and of their first product."""


def read_graphs(function: Callable[..., torch.Tensor], *given: torch.Tensor) -> list[tuple[list[str], Buffers]]:
    """Of each graph that is compiled for `function` and its gradients: what its kernels make, and its buffers."""
    found = []

    def read(kernels: Sequence[inductor.Kernel]) -> Sequence[inductor.Kernel]:
        names = [" ".join(inductor.kernel_makes(kernel)) for kernel in kernels]
        found.append((names, kernel_memory.kernel_buffers(kernels)))
        return kernels

    options = {"reorder_for_compute_comm_overlap": True, "reorder_for_compute_comm_overlap_passes": [read]}
    with inductor_config.patch({**options, "fx_graph_cache": False}):
        output = torch.compile(function, fullgraph=True)(*given)
        if output.requires_grad:
            output.backward()
    return found


def saved_bytes(*columns: int) -> list[int]:
    """The backward graph of a product of 24 columns, of which some are multiplied again: what it is given and may free.

    Each of the further products needs its columns for the gradient of its weight.
    """
    given, weight = torch.rand(ROWS, 8), torch.rand(8, 24, requires_grad=True)
    further = [torch.rand(many, 8, requires_grad=True) for many in columns]

    def products(given, weight, *further):
        parts = (given @ weight).split([*columns, 24 - sum(columns)], dim=-1)
        return sum((part @ matrix).sum() for part, matrix in zip(parts, further, strict=False)) + parts[-1].sum()

    _, (_, buffers) = read_graphs(products, given, weight, *further)
    return [buffer.size for buffer in buffers if buffer.maker == -1 and buffer.size > 8 * 24 * 4]


def test_a_saved_view_is_the_memory_that_it_lies_in() -> None:
    assert saved_bytes(16) == [PRODUCT, GIVEN]


def test_views_of_one_memory_are_counted_once() -> None:
    assert saved_bytes(6, 6) == [PRODUCT, GIVEN]


def test_results_of_a_call_are_there_until_the_last_one_is_taken() -> None:
    def largest(rows):
        values, places = rows.topk(4)
        return (values.sin() @ rows[:4, :8]).sum() + places.sum()

    ((names, buffers),) = read_graphs(largest, torch.rand(ROWS, 32))
    call, *takes = (names.index(name) for name in ("buf0", "buf1", "buf2"))
    results = [buffer for buffer in buffers if buffer.size in {ROWS * 4 * 4, ROWS * 4 * 8} and buffer.maker == call]
    assert len(results) == 2
    for result in results:
        assert set(takes) < set(result.users), "else one is thought to be free while the tuple holds it"


def test_inductors_order_is_valid_whatever_it_is_given() -> None:
    """Each kernel comes after those whose results it reads."""
    found = []

    def read(kernels: Sequence[inductor.Kernel]) -> Sequence[inductor.Kernel]:
        ordered = kernel_memory.inductors_order(kernels[::-1])
        assert set(ordered) == set(kernels)
        assert len(ordered) == len(kernels)
        made: set[str] = set()
        everything = {name for kernel in kernels for name in inductor.kernel_makes(kernel)}
        for kernel in ordered:
            found.append(made.issuperset(everything & {*inductor.kernel_reads(kernel)}))
            made |= {*inductor.kernel_makes(kernel)}
        return kernels

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ w) @ w.t() + x

    options = {"reorder_for_compute_comm_overlap": True, "reorder_for_compute_comm_overlap_passes": [read]}
    for reorders in (True, False):
        torch._dynamo.reset()
        with inductor_config.patch({**options, "fx_graph_cache": False, "reorder_for_peak_memory": reorders}):
            torch.compile(function, fullgraph=True)(torch.randn(ROWS, 8), torch.randn(8, 24))
    assert len(found) >= 6
    assert all(found)


def test_inductors_order_does_not_know_what_we_tell_inductor() -> None:
    """It would take another one for memory if it knew how many rows there are; it knows them again afterwards."""
    given: list[list[str]] = []
    alone: list[list[str]] = []

    def tell(graph: fx.Graph) -> None:
        SizeHints(graph, fallback=ROWS).tell_inductor()

    def read(kernels: Sequence[inductor.Kernel]) -> Sequence[inductor.Kernel]:
        before = kernel_memory.kernel_buffers(kernels)
        written = sorted(kernels, key=lambda kernel: int(inductor.kernel_name(kernel).removeprefix("op")))
        ordered = kernel_memory.inductors_order(written)
        given.append(list(map(inductor.kernel_name, kernels)))
        alone.append(list(map(inductor.kernel_name, ordered)))
        assert kernel_memory.kernel_buffers(kernels) == before
        return kernels

    def products(which: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        rows = table[which.nonzero()[:, 0]]
        made = [rows @ torch.outer(table[i], table[i]) for i in range(3)]
        return sum((one.T @ one).sum() for one in made)

    options = {
        "reorder_for_compute_comm_overlap": True,
        "reorder_for_compute_comm_overlap_passes": [read],
        "reorder_for_locality": False,
        "fx_graph_cache": False,
    }
    for user_pass in (None, tell):
        torch._dynamo.reset()
        patched = inductor_config.patch({**options, "post_grad_custom_post_pass": user_pass})
        with patched, torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            torch.compile(products, fullgraph=True)(torch.ones(ROWS), torch.rand(ROWS, 64))
    untold, told = given
    assert told != untold, "else nothing is shown"
    assert alone == [untold, untold]


def test_inductors_order_forgets_for_a_while_how_large_saved_rows_are() -> None:
    """Inductor remembers the size of each input; and the account needs these sizes, and who uses them, afterwards."""
    counted: list[list[int]] = []
    sort = kernel_memory.reorder_for_peak_memory

    def sizes(kernels: Sequence[inductor.Kernel]) -> list[int]:
        return sorted(one.size for one in kernel_memory.kernel_buffers(kernels) if one.maker == -1)

    def counting(kernels: list[inductor.Kernel], *rest: object) -> list[inductor.Kernel]:
        ordered: list[inductor.Kernel] = sort(kernels, *rest)
        counted.append(sizes(ordered))
        return ordered

    def read(kernels: Sequence[inductor.Kernel]) -> Sequence[inductor.Kernel]:
        before = sizes(kernels)
        with mock.patch.object(kernel_memory, "reorder_for_peak_memory", counting):
            kernel_memory.inductors_order(kernels)
        assert sizes(kernels) == before
        counted.append(before)
        return kernels

    def product(which: torch.Tensor, table: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (table[which.nonzero()[:, 0]] @ weight).sin().sum()

    options = {
        "post_grad_custom_post_pass": lambda graph: SizeHints(graph, fallback=ROWS).tell_inductor(),
        "reorder_for_compute_comm_overlap": True,
        "reorder_for_compute_comm_overlap_passes": [read],
        "fx_graph_cache": False,
    }
    torch._dynamo.reset()
    with inductor_config.patch(options), torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(product, fullgraph=True)
        compiled(torch.ones(ROWS), torch.rand(ROWS, 64), torch.rand(64, 8, requires_grad=True)).backward()
    *_, alone, told = counted
    assert {ROWS * 64 * 4, ROWS * 8 * 4} <= {*told}, "the rows, and their product"
    assert {ROWS * 64 * 4, ROWS * 8 * 4}.isdisjoint(alone), "of which Inductor knows nothing by itself"
