# SPDX-License-Identifier: Apache-2.0
"""A parallel run is the one-process model: same outputs, and each slice gets its slice of the gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist

from farskip_compile.errors import ConfigError, ParallelismError
from farskip_compile.models import MODELS, Decoder, FarSkipForm, ParallelConfig, build
from farskip_compile.models.sharding import local_slice, shards_of
from tests.distributed.ranks import RankError, run_ranks

TOKENS_PER_RANK = (2, 6)
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def all_ids(ep_size: int) -> torch.Tensor:
    batch, length = TOKENS_PER_RANK
    return torch.randint(0, 127, (ep_size * batch, length), generator=torch.Generator().manual_seed(1))


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    return logits.square().sum() / 100


def summed(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    if group is not None:
        dist.all_reduce(tensor, group=group)
    return tensor


def check_equals_one_process(
    name: str, parallel: ParallelConfig, compiled: str | None = None, **overrides: object
) -> None:
    ep_rank = 0 if parallel.ep_group is None else parallel.ep_group.rank()
    ids = all_ids(parallel.ep_size)
    whole = build(name, seed=3, dtype=torch.float64, **overrides)
    expected = whole(ids)
    loss_of(expected).backward()

    local: Decoder = build(name, seed=3, dtype=torch.float64, parallel=parallel, **overrides)
    run = local if compiled is None else torch.compile(local, backend=compiled, fullgraph=True)
    actual = run(ids.chunk(parallel.ep_size)[ep_rank])
    torch.testing.assert_close(actual, expected.chunk(parallel.ep_size)[ep_rank], **TOLERANCE)

    # The loss is summed over all ranks, and ranks of one tensor-parallel group count the same tokens.
    (loss_of(actual) / parallel.tp_size).backward()
    cuts, wanted = shards_of(local), dict(whole.named_parameters())
    for key, parameter in local.named_parameters():
        assert parameter.grad is not None, key
        gradient = parameter.grad.clone()
        held_in = {id(shard.group) for shard in cuts[key] if shard.group is not None}
        for group in (parallel.ep_group, parallel.tp_group):
            if id(group) not in held_in:
                gradient = summed(gradient, group)
        expected_gradient = local_slice(wanted[key].grad, cuts[key])
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12, msg=f"{name}: {key}")


def two_ranks(rank: int, world_size: int) -> None:
    world = dist.group.WORLD
    for name in MODELS:
        check_equals_one_process(name, ParallelConfig(ep_group=world))
        check_equals_one_process(name, ParallelConfig(ep_group=world, ep_mode="dropless"))
        check_equals_one_process(name, ParallelConfig(tp_group=world))
    for name in ("deepseek_v3", "llama4"):
        check_equals_one_process(name, ParallelConfig(ep_group=world, ep_mode="allgather"))
        check_equals_one_process(name, ParallelConfig(tp_group=world, sequence_parallel=True))


def compiled_ranks(rank: int, world_size: int, backend: str) -> None:
    world = dist.group.WORLD
    for parallel in (
        ParallelConfig(ep_group=world),
        ParallelConfig(ep_group=world, ep_mode="dropless"),
        ParallelConfig(ep_group=world, ep_mode="allgather"),
        ParallelConfig(tp_group=world),
        ParallelConfig(tp_group=world, sequence_parallel=True),
    ):
        check_equals_one_process("llama4", parallel, compiled=backend, layers=("moe",))
        torch._dynamo.reset()


def four_ranks(rank: int, world_size: int) -> None:
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("ep", "tp"))
    ep_group, tp_group = mesh.get_group("ep"), mesh.get_group("tp")
    for mode, sequence_parallel in (("padded", False), ("padded", True), ("dropless", False), ("allgather", True)):
        parallel = ParallelConfig(
            ep_group=ep_group, tp_group=tp_group, ep_mode=mode, sequence_parallel=sequence_parallel
        )
        check_equals_one_process("deepseek_v3", parallel)
    check_equals_one_process("qwen3_moe", ParallelConfig(ep_group=ep_group, tp_group=tp_group))
    world = dist.group.WORLD
    check_equals_one_process("llama4", ParallelConfig(ep_group=world, ep_mode="allgather"))
    check_equals_one_process("llama4", ParallelConfig(tp_group=world, sequence_parallel=True), kv_heads=4)


def hand_written_forms(rank: int, world_size: int) -> None:
    world = dist.group.WORLD
    ids = all_ids(1)
    for name, sequence_parallel in itertools.product(("deepseek_v3", "qwen3_moe"), (False, True)):
        overrides = {"shared_experts": 2} if name == "deepseek_v3" else {}
        parallel = ParallelConfig(tp_group=world, sequence_parallel=sequence_parallel)
        whole = build(name, dtype=torch.float64, **overrides)
        local = build(name, dtype=torch.float64, parallel=parallel, **overrides)
        assert torch.equal(FarSkipForm(local, connectivity="none")(ids), local(ids))
        for connectivity in ("full", "attention", "mlp"):
            form = FarSkipForm(local, connectivity=connectivity, layers=(1, 3))
            expected = FarSkipForm(whole, connectivity=connectivity, layers=(1, 3))(ids)
            torch.testing.assert_close(form(ids), expected, **TOLERANCE)
        merged = FarSkipForm(local, merge_reductions=True)(ids)
        torch.testing.assert_close(merged, FarSkipForm(whole)(ids), **TOLERANCE)


def refusals(rank: int, world_size: int) -> None:
    world = dist.group.WORLD
    with pytest.raises(ParallelismError, match="7 routed experts"):
        build("mixtral", experts=7, parallel=ParallelConfig(ep_group=world))
    with pytest.raises(ParallelismError, match="key/value heads"):
        build("mixtral", kv_heads=1, parallel=ParallelConfig(tp_group=world))
    with pytest.raises(ParallelismError, match="inner channels"):
        build("mixtral", moe_intermediate_size=33, parallel=ParallelConfig(tp_group=world))
    with pytest.raises(ParallelismError, match="3 tokens"):
        build("mixtral", parallel=ParallelConfig(tp_group=world, sequence_parallel=True))(all_ids(1)[:1, :3])
    with pytest.raises(ParallelismError, match="cut twice"):
        ParallelConfig(ep_group=world, tp_group=world)
    with pytest.raises(ConfigError, match="tensor parallelism"):
        ParallelConfig(ep_group=world, sequence_parallel=True)
    with pytest.raises(ConfigError, match="ep_mode"):
        ParallelConfig(ep_group=world, ep_mode="gather")


def skewed_load(rank: int, world_size: int) -> None:
    """Other counts, down to a rank whose experts get nothing, need no new compilation."""
    world = dist.group.WORLD
    dropless, padded = (
        build(
            "deepseek_v3",
            layers=("dense", "moe"),
            dtype=torch.float64,
            parallel=ParallelConfig(ep_group=world, ep_mode=mode),
        )
        for mode in ("dropless", "padded")
    )
    compiled = torch.compile(dropless, backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for bias in (0.0, 100.0):
            for layer in [*dropless.layers[1:], *padded.layers[1:]]:
                layer.feed_forward.router.correction_bias[:2] += bias  # rank 0 holds experts 0 to 3
            actual, expected = compiled(all_ids(1) + rank), padded(all_ids(1) + rank)
            torch.testing.assert_close(actual, expected, **TOLERANCE)
            for model, logits in ((dropless, actual), (padded, expected)):
                model.zero_grad()
                loss_of(logits).backward()
            for one, other in zip(dropless.parameters(), padded.parameters(), strict=True):
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def two_ranks_all(rank: int, world_size: int) -> None:
    two_ranks(rank, world_size)
    hand_written_forms(rank, world_size)
    refusals(rank, world_size)
    compiled_ranks(rank, world_size, "aot_eager")
    skewed_load(rank, world_size)


def fail_on_one(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("this rank is unhappy")
    dist.barrier()


def test_two_ranks_equal_one_process():
    run_ranks(two_ranks_all, 2)


def test_expert_and_tensor_parallelism_together():
    run_ranks(four_ranks, 4)


def test_an_error_on_one_rank_comes_back():
    with pytest.raises(RankError, match="this rank is unhappy"):
        run_ranks(fail_on_one, 2)
