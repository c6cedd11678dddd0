# SPDX-License-Identifier: Apache-2.0
"""A batch on its way through a graph: runs ahead of it leave it as it is, and it keeps no more than it needs."""

from __future__ import annotations

import torch
from torch import fx

from farskip_compile.healing.fold.tape import Course, Tape


def written(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    total = x.clone()
    part = total[:, :2]
    y = x @ w
    part.add_(y)
    return total * 2.0


def tape() -> tuple[Tape, dict[str, int], tuple[torch.Tensor, torch.Tensor]]:
    course = Course(fx.symbolic_trace(written))
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(3, 4, generator=generator), torch.randn(4, 2, generator=generator)
    return Tape(course, given), {node.name: place for node, place in course.place.items()}, given


def test_a_fork_writes_to_memory_of_its_own():
    one, place, given = tape()
    wanted = written(*given)
    one.advance(place["matmul"])  # the buffer and the view of it are there, the write is not
    for _ in range(2):
        assert torch.equal(one.fork().finish(), wanted)
    assert torch.equal(one.finish(), wanted)


def test_parameters_count_as_they_are_now():
    one, place, (x, w) = tape()
    one.advance(place["matmul"])
    w.mul_(3.0)
    node = next(node for node in one.course.nodes if node.name == "matmul")
    assert torch.equal(one.ahead(node), x @ w)
    assert torch.equal(one.finish(), written(x, w))


def test_values_are_let_go_of_after_their_last_use():
    one, place, _ = tape()
    one.advance(place["mul"])
    held = {node.name for node in one.values if node.op != "placeholder"}
    assert held == {"clone"}  # the view, the product and what the write gave are not needed any more


def test_watched_values_are_kept():
    course = Course(fx.symbolic_trace(written))
    node = next(node for node in course.nodes if node.name == "matmul")
    x, w = torch.ones(3, 4), torch.ones(4, 2)
    one = Tape(course, (x, w), [node])
    one.finish()
    assert torch.equal(one.seen[node], x @ w)
