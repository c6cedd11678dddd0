# SPDX-License-Identifier: Apache-2.0
"""Faults that show when compiled graphs meet: kernels, other ranks, caches, the backward graph."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol

from farskip_compile import FarSkipConfig, backend, testing
from farskip_compile._compat.distributed import StoreClient
from farskip_compile._compat.generated import generating_only
from farskip_compile.compiler.inductor_passes import after_fusion, post_grad
from farskip_compile.compiler.ranks import agree, stale
from farskip_compile.compiler.ranks import identity as cache_identity
from farskip_compile.compiler.ranks.common_options import common_options
from farskip_compile.errors import OrderMismatchError, VerificationError
from farskip_compile.models import ParallelConfig, build
from farskip_compile.passes.rewire import split_collectives
from farskip_compile.passes.schedule import kernels as schedule_kernels
from farskip_compile.records.announcement import Announcement
from farskip_compile.verify.kernels import verify_kernels
from tests.distributed.ranks import run_ranks
from tests.inductor.test_generated_order import quick_link
from tests.mutation.bench import Fault, Verdict, fresh, mutated
from tests.mutation.models import PLAIN, SHARED_FIRST
from tests.mutation.order_bench import fresh as fresh_graph
from tests.mutation.order_bench import plan, said, schedule

# Kernels


def exchanging(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Two exchanges, and products that hide them."""
    for _ in range(2):
        x = funcol.all_to_all_single((x @ weight).sin(), None, None, dist.group.WORLD) + (x @ weight) @ weight
    return x


KERNEL_FAULTS = {
    "kernels in reverse order": "schedule.order[::-1]",
    "a kernel lost": "schedule.order[1:]",
    "a kernel runs twice": "(*schedule.order, schedule.order[0])",
}
"""In `schedule_kernels`, which gives Inductor its kernels back."""


@functools.cache
def kernel_verdicts() -> dict[str, Verdict | None]:
    """What becomes of each of them, while Inductor compiles `exchanging`; the right order must pass."""
    given: list[Any] = []
    verdicts: dict[str, Verdict | None] = {}

    def keep(*args: Any) -> Any:
        given.extend(args)
        return order(*args)

    def check(before: list[Any], after: list[Any]) -> None:
        verify_kernels(before, after)
        first = [kernel for kernel in before if kernel not in given[0]]
        for name, new in KERNEL_FAULTS.items():
            with whole(order), mutated(order, "schedule.order[first:]", new):
                wrong = [*first, *schedule_kernels.schedule_kernels(*given)[0]]
            assert wrong != after, "an equivalent mutant"
            try:
                verdicts[name] = verify_kernels(before, wrong)
            except VerificationError as error:
                verdicts[name] = Verdict.of("order verification", error)

    order = schedule_kernels.schedule_kernels
    whole = functools.partial(mock.patch.object, after_fusion, "schedule_kernels")
    torch.compiler.reset()
    with (
        whole(keep),
        mock.patch.object(after_fusion, "verify_kernels", check),
        testing.fake_ranks(2),
        torch.no_grad(),
        generating_only(lambda kernels: None),
        contextlib.suppress(RuntimeError),  # what was generated can't run
    ):
        compiled = torch.compile(exchanging, backend=backend(connectivity="none"), fullgraph=True)
        compiled(torch.ones(16, 16), torch.ones(16, 16))
    assert verdicts.keys() == KERNEL_FAULTS.keys()
    return verdicts


# Other ranks


def compare(*said_by: Announcement) -> list[BaseException | None]:
    """What ranks get to hear that compare what their graphs announce: threads, with a store between them."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=20))
    local, errors = threading.local(), [None for _ in said_by]

    def client(group: str) -> StoreClient:
        return StoreClient(group, local.rank, tuple(range(len(said_by))), 20.0, store)

    def rank(number: int) -> None:
        local.rank = number
        said = said_by[number]
        try:
            agree.check_across_ranks(said.report.orders, said.report.phase, said.common, said.sizes)
        except OrderMismatchError as error:
            errors[number] = error

    with mock.patch.object(agree, "process_group_store", client):
        threads = [threading.Thread(target=rank, args=(number,)) for number in range(len(said_by))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return errors


def announced(
    graph: str = "reductions", break_it: Callable[[Any], None] = lambda module: None, **fields: Any
) -> Announcement:
    """What a graph says once it is scheduled."""
    module = fresh_graph(graph)
    break_it(module)
    schedule(module, plan(**fields))
    return said(module)


def on_one_rank(name: str, where: str, other: Callable[[], Announcement]) -> Fault:
    def judge() -> Verdict | None:
        mine, theirs = announced(), other()
        assert mine != theirs, "both ranks have the same"
        errors = compare(mine, theirs)
        if None in errors:
            return None
        return Verdict.of("order check", errors[0])

    return Fault(name, where, judge)


def launches_exchanged(module: Any) -> None:
    one, two = (node for node in module.graph.nodes if "all_reduce" in str(node.target))
    for place in (0, 1):
        mine, theirs = one.args[place], two.args[place]
        one.update_arg(place, theirs)
        two.update_arg(place, mine)


def options(**wish: Any) -> dict[str, Any]:
    """What a compile of the plain model has in common on all ranks."""
    from farskip_compile.compiler.pipeline import run

    config = FarSkipConfig(**wish)
    return common_options(config, run(fresh(PLAIN), config), cache_identity.source_hash())


def assert_same(rank: int, world_size: int) -> str:
    """On rank 1, split reductions are launched where they were; the order says the same, the graph does not."""
    model = SHARED_FIRST.make()
    with mutated(split_collectives.split_sums, "_launch_early(stream, kept)", "pass") if rank else nullcontext():
        try:
            testing.assert_same_on_all_ranks(model, *SHARED_FIRST.inputs())
        except AssertionError as error:
            return str(error)
    return ""


def order_depends_on_the_rank() -> Verdict | None:
    messages = run_ranks(assert_same, 2)
    assert len(set(map(bool, messages))) == 1
    return Verdict("testing", messages[0].splitlines()[0]) if messages[0] else None


# Caches


def from_a_cache(
    name: str,
    where: str,
    made_for: Callable[[], tuple[str, dict[str, Any]]],
    asked_for: Callable[[], tuple[str, dict[str, Any]]],
    graph: str = "forward graph",
) -> Fault:
    """A compiled graph, made for one thing, runs in a process that asked for another."""

    def judge() -> Verdict | None:
        (identity, common), asked = made_for(), asked_for()
        assert (identity, common) != asked, "both are the same"
        artifact = replace(announced(graph, common=common), identity=identity)
        with mock.patch.object(stale, "_requested", {}):
            stale.expect(*asked)
            try:
                stale.refuse_stale(artifact)
            except VerificationError as error:
                return Verdict.of("artifact check", error)
        return None

    return Fault(name, where, judge)


def compile_for(forget: str = "", **wish: Any) -> tuple[str, dict[str, Any]]:
    """Identity and options of a compile, by an `identity_of` that may have forgotten something."""
    config = FarSkipConfig(**wish)
    if not forget:
        identity = cache_identity.identity_of(config, fresh(PLAIN), plan().profile)
    else:
        with mutated(cache_identity.identity_of, forget, '""'):
            identity = cache_identity.identity_of(config, fresh(PLAIN), plan().profile)
    return identity, options(**wish)


def recomputed() -> tuple[str, dict[str, Any]]:
    """The same with activation checkpoints."""
    module = fresh(PLAIN)
    next(iter(module.graph.nodes)).meta["recompute"] = "PREFER_RECOMPUTE"
    return cache_identity.identity_of(FarSkipConfig(), module, plan().profile), options()


CONFIG = "json.dumps(config.to_json(), sort_keys=True)"

# The backward graph


def backward_is_not_scheduled() -> Verdict | None:
    with mutated(
        post_grad.PostGradPass.__call__,
        "if self.plan is not None and",
        'if self.plan is not None and _phase(graph) != "backward" and',
    ):
        return overlaps()


def overlaps() -> Verdict | None:
    with testing.fake_ranks(2) as group:
        model = build(
            "deepseek_v3",
            parallel=ParallelConfig(ep_group=group, ep_mode="padded"),
            layers=("moe",),
            vocab_size=32,
            hidden_size=64,
        ).train()
        try:
            testing.assert_overlappable(
                model, torch.zeros(1, 16, dtype=torch.long), at_least=1e-7, config=FarSkipConfig(profile=quick_link())
            )
        except AssertionError as error:
            return Verdict.of("testing", error)
    return None


FAULTS: list[Fault] = [
    *(
        Fault(name, "schedule_kernels.schedule_kernels", lambda name=name: kernel_verdicts()[name])
        for name in KERNEL_FAULTS
    ),
    on_one_rank("launch order different on one rank", "two ranks", lambda: announced(break_it=launches_exchanged)),
    on_one_rank("another graph on one rank", "two ranks", lambda: announced("forward graph")),
    on_one_rank("other options on one rank", "two ranks", lambda: announced(common=options(connectivity="mlp"))),
    Fault("order depends on the rank", "split_sums", order_depends_on_the_rank),
    from_a_cache(
        "stale cache artifact after a config change",
        "compiled graph",
        lambda: compile_for(connectivity="mlp"),
        compile_for,
    ),
    from_a_cache(
        "stale artifact, in backward only",
        "compiled graph",
        lambda: compile_for(layers=(1, 2)),
        compile_for,
        "backward graph",
    ),
    from_a_cache("stale artifact without checkpointing", "compiled graph", recomputed, compile_for),
    from_a_cache(
        "cache key without the configuration",
        "cache_identity",
        lambda: compile_for(CONFIG, connectivity="attention"),
        lambda: compile_for(CONFIG),
    ),
    Fault("backward left unscheduled", "overlap_passes", backward_is_not_scheduled),
]
