# SPDX-License-Identifier: Apache-2.0
"""`farskip_compile.comm`: rows reach their experts and come back, on one rank and on real ranks, eager and compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st

from farskip_compile.comm import combine, dispatch, expert_group
from farskip_compile.errors import ConfigError, ParallelismError
from tests.distributed.ranks import run_ranks


def apply_experts(received: Any, first: int, factors: torch.Tensor) -> Any:
    """Expert e multiplies its rows by factors[e]; works on what either recipe gives."""
    results = [received[i] * factors[first + i] for i in range(len(received))]
    return results if isinstance(received, list) else torch.stack(results)


def exchange(rows, expert_of_row, factors, group=None, slots=None):
    first = 0 if group is None else group.rank() * (len(factors) // group.size())
    received, receipt = dispatch(rows, expert_of_row, experts=len(factors), group=group, slots=slots)
    return combine(apply_experts(received, first, factors), receipt)


@given(expert_of_row=st.lists(st.integers(-1, 4), min_size=1, max_size=9), slots=st.none() | st.integers(1, 9))
@example(expert_of_row=[3, 3, 3], slots=2)
@settings(max_examples=40)
def test_each_row_gets_its_own_expert_unless_it_is_dropped(expert_of_row, slots):
    """With room for few, the first rows of an expert are kept; numbers of no expert are dropped."""
    if slots is None:
        expert_of_row = [min(max(expert, 0), 3) for expert in expert_of_row]
    rows = torch.randn(len(expert_of_row), 3, dtype=torch.float64, requires_grad=True)
    factors = torch.tensor([2.0, 3.0, 5.0, 7.0], dtype=torch.float64, requires_grad=True)
    output = exchange(rows, torch.tensor(expert_of_row), factors, slots=slots)
    seen = [0] * 6
    kept = []
    for expert in expert_of_row:
        kept.append(0 <= expert < 4 and (slots is None or seen[expert] < slots))
        seen[expert] += 1
    expected = torch.stack(
        [row * factors[expert % 4] * float(keep) for row, expert, keep in zip(rows, expert_of_row, kept, strict=True)]
    )
    assert torch.equal(output, expected)
    weights = torch.randn_like(output)
    for mine, theirs in zip(
        torch.autograd.grad((output * weights).sum(), (rows, factors)),
        torch.autograd.grad((expected * weights).sum(), (rows, factors)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_where_rows_lie():
    rows = torch.arange(12.0).view(6, 2) + 1
    expert_of_row = torch.tensor([1, 0, 1, 1, 2, 0], dtype=torch.int32)
    buffer, _ = dispatch(rows, expert_of_row, experts=3, slots=2, group=None)
    assert torch.equal(buffer[0], rows[[1, 5]])
    assert torch.equal(buffer[1], rows[[0, 2]])
    assert torch.equal(buffer[2], torch.stack([rows[4], torch.zeros(2)]))
    segments, _ = dispatch(rows, expert_of_row, experts=3, group=None)
    assert [segment.tolist() for segment in segments] == [rows[i].tolist() for i in ([1, 5], [0, 2, 3], [4])]


ROWS, EXPERT_OF_ROW = torch.ones(4, 2), torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": torch.ones(2, 2, 2)}, r"rows \[R, D\]"),
        ({"expert_of_row": torch.zeros(4, 1, dtype=torch.long)}, r"rows \[R, D\]"),
        ({"expert_of_row": torch.zeros(3, dtype=torch.long)}, r"rows \[R, D\]"),
        ({"expert_of_row": torch.zeros(4)}, "float32"),
        ({"expert_of_row": torch.zeros(4, dtype=torch.bool)}, "bool"),
        ({"slots": 0}, "at least 1"),
        ({"experts": 0}, "at least 1"),
    ],
)
def test_what_dispatch_refuses(wrong, message):
    arguments = {"rows": ROWS, "expert_of_row": EXPERT_OF_ROW, "experts": 2, "group": None, **wrong}
    rows, expert_of_row = arguments.pop("rows"), arguments.pop("expert_of_row")
    for run in (dispatch, torch.compile(dispatch, backend="eager", fullgraph=True)):  # traced, the error is the same
        with pytest.raises(ConfigError, match=message):
            run(rows, expert_of_row, **arguments)


def test_what_combine_refuses():
    buffer, padded = dispatch(ROWS, EXPERT_OF_ROW, experts=2, group=None, slots=2)
    for wrong in (buffer[:1], buffer[:, :1], buffer.flatten(0, 1), list(buffer)[:1]):
        with pytest.raises(ConfigError, match="local experts"):
            combine(wrong, padded)
    segments, dropless = dispatch(ROWS, EXPERT_OF_ROW, experts=2, group=None)
    with pytest.raises(ConfigError, match="2 local experts"):
        combine(segments[:1], dropless)
    with pytest.raises(ConfigError, match="got 2 rows and returns 1"):
        combine([segments[0], segments[1][:1]], dropless)
    assert torch.equal(combine(list(buffer), padded), ROWS)  # a list of blocks will do
    wider = [torch.cat([segment, segment], -1) for segment in segments]
    assert combine(wider, dropless).shape == (4, 4)  # so will another width


def test_groups_that_are_none_of_ours():
    for stranger in (dist.GroupMember.NON_GROUP_MEMBER, "experts", [0, 1]):
        with pytest.raises(ParallelismError, match="not a process group"):
            dispatch(ROWS, EXPERT_OF_ROW, experts=2, group=stranger)


# On ranks


def own_rows(rank: int, experts: int, call: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Different numbers of rows on each rank; in call 1 everybody wants the experts of rank 0."""
    generator = torch.Generator().manual_seed(10 * call + rank)
    rows = torch.randn(6 + rank, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    high = 2 if call == 1 else experts
    return rows, torch.randint(0, high, (6 + rank,), generator=generator)


def on_ranks(rank: int, world_size: int) -> None:
    group = expert_group(dist.group.WORLD)
    assert group is not dist.group.WORLD
    assert group.group_name != dist.group.WORLD.group_name
    assert dist.get_process_group_ranks(group) == list(range(world_size))
    experts = 2 * world_size
    factors = torch.arange(1.0, 1.0 + experts, dtype=torch.float64, requires_grad=True)
    for slots in (None, 8):
        for inner in (None, "inductor"):
            torch._dynamo.reset()
            torch._inductor.config.cpp.simdlen = 1  # as in `scalar_kernels`, to the end of this process
            run = exchange if inner is None else torch.compile(exchange, backend=inner, fullgraph=True, dynamic=True)
            for call in range(3):
                rows, expert_of_row = own_rows(rank, experts, call)
                with torch._dynamo.config.patch(error_on_recompile=call > 0):  # other counts, same code
                    output = run(rows, expert_of_row, factors, group, slots)
                expected = rows * factors[expert_of_row].unsqueeze(-1)
                torch.testing.assert_close(output, expected, rtol=1e-14, atol=0)
                weights = torch.linspace(1, 2, output.numel(), dtype=torch.float64).view_as(output)
                mine = torch.autograd.grad((output * weights).sum(), (rows, factors))
                theirs = torch.autograd.grad((expected * weights).sum(), (rows, factors))
                torch.testing.assert_close(mine[0], theirs[0], rtol=1e-13, atol=0)
                of_experts = theirs[1].clone()  # an expert learns from the rows of all ranks
                dist.all_reduce(of_experts)
                local = slice(2 * rank, 2 * rank + 2)
                torch.testing.assert_close(mine[1][local], of_experts[local], rtol=1e-12, atol=1e-12)
    with pytest.raises(ParallelismError, match="3 experts can't be divided among 2"):
        dispatch(ROWS, EXPERT_OF_ROW, experts=3, group=group)


def test_two_ranks_eager_and_compiled_whole() -> None:
    run_ranks(on_ranks, 2, timeout=300)


def groups_of_four(rank: int, world_size: int) -> tuple[list[int], bool, str]:
    """Groups for the rows of a mesh, although no rank knows the other row."""
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("ep", "tp"))
    group = expert_group(mesh.get_group("ep"))
    total = torch.tensor([float(rank)])
    dist.all_reduce(total, group=group)
    wrong = dist.group.WORLD if rank == 0 else group
    with pytest.raises(ParallelismError, match="not all of these say the same"):
        expert_group(wrong)
    everybody = expert_group(dist.group.WORLD)  # the refusal has left all ranks in step
    dist.barrier(everybody)
    return dist.get_process_group_ranks(group), group is mesh.get_group("ep"), str(total.item())


def test_expert_groups_of_a_mesh() -> None:
    assert run_ranks(groups_of_four, 4, timeout=300) == [
        ([0, 2], False, "2.0"),
        ([1, 3], False, "4.0"),
        ([0, 2], False, "2.0"),
        ([1, 3], False, "4.0"),
    ]
