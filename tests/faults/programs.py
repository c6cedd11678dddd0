# SPDX-License-Identifier: Apache-2.0
"""What ranks do in the tests of faults, and where something goes wrong in it: scenes for `run_scenes`.

`step` is one training step of a small model with exchanges in it. Its products and exchanges are calls of libraries,
so that Inductor builds no kernel for it and compiles in a second. A wish, one for each rank, says what the model is
like, with which options it is compiled and what goes wrong:

    exchanges   all-to-alls of the model (2)
    reduces     one of them is an all-reduce: another order of collectives
    silent      no collective at all
    options     of the backend
    label       a part of the cache's keys: with a new one nothing is found in the cache, and all passes run
    fault       see `Fault`

While a compiled step runs, `point` is between two of its collectives, forward and backward.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import pathlib
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.graph import GraphLowering
from torch.distributed import distributed_c10d

from farskip_compile._compat.distributed import world_store
from farskip_compile.compiler.ranks import agree
from farskip_compile.compiler.ranks.failures import report_failure
from farskip_compile.errors import FarSkipError
from tests.faults.outcomes import reached

ON_PURPOSE = "broken on purpose"
USERS_PASS = "a pass of the user"
OUR_PASS = "our pass on the graph"
KERNELS = "our pass on kernels"
INDUCTOR = "Inductor's code generator"
CACHE = "Inductor's writing of its cache"
PLACES: dict[str, tuple[Any, str]] = {
    OUR_PASS: ("farskip_compile.compiler.inductor_passes.post_grad", "schedule_graph"),
    KERNELS: ("farskip_compile.compiler.inductor_passes.after_fusion", "schedule_kernels"),
    INDUCTOR: (GraphLowering, "codegen"),
    CACHE: (pathlib.Path, "rename"),
    "normalize": ("farskip_compile.compiler.pipeline", "normalize"),
    "rewire": ("farskip_compile.compiler.pipeline", "rewire"),
    "verify": ("farskip_compile.compiler.pipeline", "verify"),
}
"""Where something can go wrong in a compile: module or class, and the function of it."""


@dataclass(frozen=True)
class Fault:
    """Something goes wrong at the end of the `number`-th call of a place, or at a point of a step that runs."""

    place: str
    """A key of `PLACES`, `USERS_PASS`; or `running forward`, `running backward`."""
    kind: str
    """`raise`; `memory`: no more memory; else the name that is `reached`."""
    number: int = 1
    """Graphs are compiled forward first, then backward."""

    def happen(self) -> None:
        """Raise, or stand still."""
        if self.kind == "raise":
            raise ValueError(ON_PURPOSE)
        if self.kind == "memory":
            use_up_memory()
        else:
            reached(self.kind)


def use_up_memory() -> None:
    """Ask for more memory than this process is allowed to have.

    Raises:
        MemoryError: from the allocator.
    """
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), limits[1]))
    try:
        bytearray(256 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@contextlib.contextmanager
def broken(fault: Fault | None) -> Iterator[None]:
    """With `fault` in its place, unless it is one of the step itself, or of a pass of the user."""
    if fault is None or fault.place not in PLACES:
        yield
        return
    owner, name = PLACES[fault.place]
    owner = importlib.import_module(owner) if isinstance(owner, str) else owner
    real, calls = getattr(owner, name), itertools.count(1)

    def run(*args: Any, **kwargs: Any) -> Any:
        turn = next(calls) == fault.number
        if turn and fault.place == CACHE:  # written to a file of another name, and not yet put into its place
            fault.happen()
        result = real(*args, **kwargs)
        if turn:
            fault.happen()
        return result

    with mock.patch.object(owner, name, run):
        yield


class UsersPass(CustomGraphPass):
    """Does nothing but fail."""

    def __init__(self, label: str, fault: Fault | None) -> None:
        self.label = label
        self.fault = fault
        self.calls = itertools.count(1)

    def __call__(self, graph: torch.fx.Graph) -> None:
        if self.fault is not None and next(self.calls) == self.fault.number:
            self.fault.happen()

    def uuid(self) -> str:
        return self.label


_points: dict[str, Fault] = {}


def _point(x: torch.Tensor, name: str) -> torch.Tensor:
    if name in _points:
        _points[name].happen()
    return x.clone()


point = torch.library.custom_op("faults::point", _point, mutates_args=(), schema="(Tensor x, str name) -> Tensor")
point.register_fake(lambda x, name: torch.empty_like(x))
point.register_autograd(lambda context, gradient: (point(gradient, "running backward"), None))


class Exchanging(nn.Module):
    """Products with exchanges between them, and a point behind the first.

    The weight is an argument: with weights of its own it would be a part of a MoE model, and refused.
    """

    def __init__(self, exchanges: int = 2, reduces: bool = False, silent: bool = False) -> None:
        super().__init__()
        self.exchanges, self.reduces, self.silent = exchanges, reduces, silent

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        for number in range(self.exchanges):
            x = x @ weight
            if self.reduces and number == 0:
                x = funcol.all_reduce(x, "sum", dist.group.WORLD)
            elif not self.silent:
                x = funcol.all_to_all_single(x, None, None, dist.group.WORLD)
            x = point(x @ weight, "running forward")
        return x


def results(call: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    """Output and gradients."""
    x = torch.arange(64.0).view(4, 16).div(64).requires_grad_()
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).div(4).requires_grad_()
    output = call(x, weight)
    output.square().sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    return [output.detach(), x.grad, weight.grad]


def compiled_step(wish: Mapping[str, Any]) -> bool:
    """Compile and run as `wish` says; whether the results are those of the model in eager mode."""
    torch.compiler.reset()
    fault = wish.get("fault")
    model = Exchanging(wish.get("exchanges", 2), wish.get("reduces", False), wish.get("silent", False))
    options = dict(wish.get("options", {}))
    if options.get("inner", "inductor") == "inductor":
        mine = UsersPass(wish.get("label", ""), fault if fault is not None and fault.place == USERS_PASS else None)
        options["inductor"] = {"post_grad_custom_post_pass": mine}
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
    _points.clear()
    if fault is not None and fault.place.startswith("running") and fault.number == 1:
        _points[fault.place] = fault
    with broken(fault):
        found = results(compiled)
    expected = results(model)
    if fault is not None and fault.place.startswith("running"):  # in a step that is compiled and checked already
        set_timeout(3.0)
        if fault.number == 2:
            _points[fault.place] = fault
        results(compiled)
    return all(torch.allclose(one, other) for one, other in zip(found, expected, strict=True))


def set_timeout(seconds: float) -> None:
    """From now on, for the collectives of the default process group."""
    distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))


def step(rank: int, wishes: Sequence[Mapping[str, Any]]) -> bool:
    """One step, each rank by its own wish."""
    if "timeout" in wishes[rank]:
        set_timeout(wishes[rank]["timeout"])
    return compiled_step(wishes[rank])


def step_again(rank: int, first: Sequence[Mapping[str, Any]], then: Sequence[Mapping[str, Any]]) -> bool:
    """A step that raises on all ranks, and another one; rank 1 stays behind until rank 0 waits for it in that."""
    try:
        compiled_step(first[rank])
    except FarSkipError:
        pass
    else:
        raise AssertionError("nothing was raised")
    world = world_store()
    assert world is not None
    sleep = agree.time.sleep

    def polled(seconds: float) -> None:
        world.set("test/polled", "1")
        sleep(seconds)

    if rank == 1:
        world.store.wait(["test/polled"])
    with mock.patch.object(agree.time, "sleep", polled):
        return compiled_step(then[rank])


def store_dies(rank: int) -> bool:
    """Rank 0, which keeps the store, is hit once the other one waits for it."""
    if rank == 0:
        world = world_store()
        assert world is not None
        world.store.wait(["farskip/at/1"])
        reached("keeping the store")
    return compiled_step({})


def too_late(rank: int) -> None:
    """Rank 1 gets to a graph when rank 0 has given up waiting for it there."""
    world = world_store()
    assert world is not None
    if rank == 1:
        world.store.wait(["test/gave up"])
    else:
        set_timeout(0.5)
    try:
        agree.check_across_ranks({world.group: ["all_reduce sum float32"]}, "inference")
    finally:
        world.set("test/gave up", "1")


def in_a_row(rank: int) -> None:
    """Rank 0 fails; rank 1 waits for it in one process group, and rank 2 for rank 1 in another."""
    groups = [dist.new_group([first, first + 1]) for first in (0, 1)]  # made by all ranks together
    if rank == 0:
        with report_failure("failed to compile"):
            raise ValueError(ON_PURPOSE)
    agree.check_across_ranks({groups[rank - 1].group_name: ["all_reduce sum float32"]}, "inference")
