# SPDX-License-Identifier: Apache-2.0
"""Ranks compare each compile, and each change between compiles: that both graphs were compared once says nothing.

The class: ranks that run graphs with the same collectives, of different functions. Nothing hangs, and without the
comparison each rank prints the same number, which belongs to no model. And its opposite: what one rank may do alone
(compile again for another size, or after a reset) must wait for nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d

from farskip_compile.compiler.ranks import agree
from farskip_compile.compiler.ranks.compiles import Frame, counted
from farskip_compile.compiler.ranks.process_group import leaving_process_group
from farskip_compile.compiler.ranks.unannounced import check_of_captured
from farskip_compile.errors import FarSkipError, OptionsMismatchError, RankFailedError
from farskip_compile.models import ParallelConfig, build
from tests.distributed.ranks import RankError, run_ranks

REDUCED = ["all_reduce sum float32"]
Event = str
"""A letter for the options that a graph is run with: `A`, or `A!` where it is compiled again before. `A8` has fixed
sizes. `-` and a frame's number before it: `1-A`."""


class Program:
    """Frames of one rank, whose compiled graphs are one all-reduce each."""

    def __init__(self, group: Any) -> None:
        self.group, self.name = group, group.group_name
        self.frames: dict[str, Frame] = {}
        self.compiles: dict[tuple[str, str], Any] = {}

    def run(self, event: Event) -> float:
        number, _, what = event.rpartition("-")
        graph = what.removesuffix("!")
        if what.endswith("!") or (number, graph) not in self.compiles:
            sizes: Any = [[[int(graph[1:])]]] if graph[1:] else None
            common = {"connectivity": graph[0]}
            frame = self.frames.setdefault(number, Frame())
            check = check_of_captured({self.name: REDUCED}, {self.name: sizes}, common)
            self.compiles[number, graph] = counted(self.reduce, frame, common, check)
        return self.compiles[number, graph]()

    def reduce(self) -> float:
        found = torch.ones(1)
        dist.all_reduce(found, group=self.group)
        return float(found)


FINE: dict[str, tuple[Sequence[Event], Sequence[Event]]] = {
    "one rank resets": (["A", "A", "A", "A"], ["A", "A!", "A", "A!"]),
    "one rank recompiles for each size": (["A", "A", "A8"], ["A", "A6", "A4"]),
    "back and forth, from the cache": (["A", "B", "A", "B", "B", "A"], ["A", "B", "A!", "B", "B", "A"]),
    "one rank resets between changes": (["A", "B", "B", "A", "A!"], ["A", "B", "B!", "A", "A"]),
    "two models": (["1-A", "2-B", "1-A", "2-B", "2-A", "1-B"], ["1-A", "2-B", "1-A!", "2-B!", "2-A", "1-B"]),
}


def run_each(rank: int, world_size: int, folder: str) -> dict[str, list[float]]:
    found = {}
    pair = dist.new_group([0, 1])
    alone = dist.new_group([rank]) if world_size == 1 else [dist.new_group([one]) for one in range(world_size)][rank]
    if rank == 2:
        Program(alone).run("A")  # nobody has anything to compare
        return {}
    for name, events in FINE.items():
        program = Program(pair)
        found[name] = [program.run(event) for event in events[rank]]
    dist.barrier(pair)
    return found


def test_what_a_rank_may_do_alone_waits_for_nobody(tmp_path: Path) -> None:
    """On a group of two, while a third rank does nothing."""
    for found in run_ranks(run_each, 3, str(tmp_path), timeout=60)[:2]:
        assert found == {name: [2.0] * len(events[0]) for name, events in FINE.items()}


def run_again(rank: int, world_size: int, folder: str) -> list[str]:
    """Both ranks differ, and are caught; then they go on. Last, in a process group that is made anew: what the old one
    has compared is compared again."""
    found: list[str] = []
    program = Program(dist.group.WORLD)

    def run(*events: Event) -> None:
        try:
            found.append(str(program.run(events[rank])))
        except OptionsMismatchError as error:
            found.append(str(error).splitlines()[1].strip())
        dist.barrier()  # a rank that goes on before the other has looked may meet it at what it runs next

    for events in ("A", "A"), ("B", "B"), ("C", "D"), ("B!", "B"), ("A", "A"), ("1-A", "1-B"), ("1-A", "1-A"):
        run(*events)
    with leaving_process_group():
        pass
    where = f"file://{folder}/again"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2, timeout=timedelta(seconds=30))
    program.group = dist.group.WORLD
    for events in ("1-A", "1-B"), ("A", "A"), ("B", "C"), ("B", "B"):
        run(*events)
    return found


def test_ranks_that_differ_raise_and_can_go_on(tmp_path: Path) -> None:
    for rank, found in enumerate(run_ranks(run_again, 2, str(tmp_path), timeout=60)):
        differ = [
            "connectivity: rank {} has '{}', rank {} has '{}'".format(*(one if rank == 0 else one[2:] + one[:2]))
            for one in ((0, "C", 1, "D"), (0, "A", 1, "B"), (0, "B", 1, "C"))
        ]
        assert found == ["2.0", "2.0", differ[0], "2.0", "2.0", differ[1], "2.0", differ[1], "2.0", differ[2], "2.0"]


LATER: dict[str, tuple[Sequence[Event], Sequence[Event]]] = {
    "rank 1 has compiled again": (["A", "B", "A!"], ["A", "B", "B!"]),
    "from the cache, and compiled again": (["A", "B", "A"], ["A", "B", "B!"]),
    "behind another model": (["1-A", "2-A", "1-B", "1-A!"], ["1-A", "2-A", "1-B", "1-B!"]),
}


def differ_late(rank: int, world_size: int, name: str, first: int) -> None:
    """The last events differ; rank `first` comes to its own before the other does."""
    program = Program(dist.group.WORLD)
    *same, last = LATER[name][rank]
    for event in same:
        program.run(event)
    if rank != first:
        store = distributed_c10d._get_default_store()
        store.wait([f"test/{first}"])
        agree.time.sleep(0.2)
    else:
        distributed_c10d._get_default_store().set(f"test/{first}", "1")
    program.run(last)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("name", LATER)
def test_a_rank_that_goes_back_is_noticed_although_both_graphs_are_known(name: str, first: int) -> None:
    """A rank whose options have not changed goes on, perhaps into a collective; one whose options have raises at once,
    by the note that the other has left, and that ends both."""
    with pytest.raises(RankError, match=r"connectivity: rank 0 has 'A', rank 1 has 'B'") as caught:
        run_ranks(differ_late, 2, name, first, timeout=30)
    assert "OptionsMismatchError" in str(caught.value)


def change_alone(rank: int, world_size: int) -> tuple[str, str]:
    agree.WARN_SECONDS, said = 0.1, []
    agree.log.warning = lambda text, *values: said.append(text % values)  # type: ignore[method-assign]
    program = Program(dist.group.WORLD)
    for event in ("A", "B"):
        program.run(event)
    if rank == 1:
        distributed_c10d._get_default_store().wait(["test/raised"])
        return "", ""
    distributed_c10d._set_pg_timeout(timedelta(seconds=0.5))
    try:
        program.run("A")
    except RankFailedError as error:
        return str(error), "".join(said)
    finally:
        distributed_c10d._get_default_store().set("test/raised", "1")
    return "", ""


def test_a_rank_that_changes_an_option_alone_says_which_one() -> None:
    """The other rank compiles nothing, and never comes to the store: a warning, and after the timeout an error."""
    for text in run_ranks(change_alone, 2, timeout=60)[0]:
        assert "connectivity: 'A' now, 'B' before" in text
        assert "since then rank 0 has compiled it with other options, and rank 1 has not" in text


ROUNDS = [("full", "full"), ("attention", "attention"), ("full", "attention")]


def compiled_rounds(rank: int, world_size: int, inner: str) -> list[Any]:
    """Rounds of new models, and of one model that is compiled again after a reset."""
    found: list[Any] = []
    for connectivities in ROUNDS:
        torch.compiler.reset()
        model = small()
        options = {"inner": inner, "connectivity": connectivities[rank]}
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
        try:
            found.append(float(compiled(torch.arange(8).view(2, 4)).sum()))
        except FarSkipError as error:
            found.append(f"{type(error).__name__} {error}")
    return found


def small() -> nn.Module:
    torch.manual_seed(0)
    parallel = ParallelConfig(ep_group=dist.group.WORLD)
    layers = ("moe", "moe")
    return build("llama4", dtype=torch.float64, vocab_size=32, hidden_size=16, layers=layers, parallel=parallel)


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_models_in_unlike_wiring(inner: str) -> None:
    """Both ranks `full`, both `attention`, then one of each."""
    for rank, found in enumerate(run_ranks(compiled_rounds, 2, inner, timeout=300)):
        assert found[0] != found[1]
        mine, other = ROUNDS[2][rank], ROUNDS[2][1 - rank]
        assert found[2].startswith("OptionsMismatchError")
        assert f"connectivity: rank {rank} has '{mine}', rank {1 - rank} has '{other}'" in found[2]


def trained_again(rank: int, world_size: int) -> list[str]:
    """One model, trained a step under each of some options of the scheduler; the ranks differ in the last round."""
    torch.manual_seed(0)
    model, found = small(), []
    for increase in (0.1, 0.2, 0.1 if rank == 0 else 0.2):
        torch.compiler.reset()
        options = {"memory_increase": increase}
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
        compiled(torch.arange(8).view(2, 4)).sum().backward()
        found.append("trained")
    return found


def test_one_model_trained_again_under_inductor() -> None:
    """Forward and backward graphs come from a cache in the last round, and no pass runs."""
    with pytest.raises(RankError, match=r"memory_increase: rank 0 has 0\.1, rank 1 has 0\.2"):
        run_ranks(trained_again, 2, timeout=300)
