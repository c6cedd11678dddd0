# SPDX-License-Identifier: Apache-2.0
"""Rewired models on real gloo ranks against the hand-written form: expert, tensor and both parallelisms."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist

import farskip_compile
from farskip_compile.models import FarSkipForm, ParallelConfig, build
from tests.compare import relative_difference, run_with_gradients
from tests.compile_each import compile_each
from tests.distributed.ranks import run_ranks
from tests.economy import scalar_kernels

Result = dict[str, tuple[bool, float, float]]


def compare_on_rank(
    rank: int,
    world_size: int,
    layouts: tuple[str, ...],
    wishes: dict[str, tuple[dict[str, Any], ...]],
    inners: tuple[str, ...] = ("eager",),
    layers: tuple[str, ...] = ("dense", "moe", "moe"),
) -> Result:
    """For each layout, inner, model and its wishes: outputs bit-equal?, largest output and gradient differences."""
    results: Result = {}
    for layout, name in itertools.product(layouts, wishes):
        torch.compiler.reset()
        parallel = parallel_config(layout, world_size)
        model = build(name, dtype=torch.float64, parallel=parallel, **{**SMALL, "layers": layers})
        ids = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(tokens_of(parallel)))
        asked = list(itertools.product(wishes[name], inners))
        given = [{**{k: v for k, v in wish.items() if v is not None}, "inner": inner} for wish, inner in asked]
        for (wish, _), options, run in zip(asked, given, compile_each(model, given), strict=True):
            expected, expected_gradients = run_with_gradients(FarSkipForm(model, **wish), model, ids)
            with scalar_kernels():
                output, gradients = run_with_gradients(run, model, ids)
            assert gradients.keys() == expected_gradients.keys()
            worst = max(relative_difference(gradients[key], expected_gradients[key]) for key in gradients)
            key = f"{layout} {name} {sorted(options.items())}"
            results[key] = (torch.equal(output, expected), relative_difference(output, expected), worst)
    return results


SMALL: dict[str, Any] = {"vocab_size": 32, "layers": ("dense", "moe", "moe"), "hidden_size": 32}
WISHES: tuple[dict[str, Any], ...] = tuple(
    {"connectivity": connectivity, "layers": layers}
    for connectivity, layers in (
        ("full", (2, 2)),
        ("attention", (1, 2)),
        ("mlp", None),
        ("none", None),
    )
)


def parallel_config(layout: str, world_size: int) -> ParallelConfig:
    """`layout` names an `ep_mode`, "tp", or both (two ranks by two); "sp" after it adds sequence parallelism."""
    *ways, last = layout.split("+")
    sequence_parallel = last == "sp"
    ways = ways if sequence_parallel else [*ways, last]
    mode = next((way for way in ways if way != "tp"), "padded")
    world = dist.group.WORLD
    if len(ways) == 1:
        groups = {"tp_group" if ways == ["tp"] else "ep_group": world}
    else:
        tp_groups = [dist.new_group([first, first + 1]) for first in range(0, world_size, 2)]
        ep_groups = [dist.new_group(list(range(first, world_size, 2))) for first in range(2)]
        rank = dist.get_rank()
        groups = {"ep_group": ep_groups[rank % 2], "tp_group": tp_groups[rank // 2]}
    return ParallelConfig(ep_mode=mode, sequence_parallel=sequence_parallel, **groups)  # type: ignore[arg-type]


def tokens_of(parallel: ParallelConfig) -> int:
    """A seed for this rank's tokens: ranks of one tensor-parallel group have the same ones, others their own."""
    return 0 if parallel.ep_group is None else parallel.ep_group.rank()


def check(results: list[Result], *, bits: bool = True, tolerance: float = 1e-12) -> None:
    bad = {
        (rank, key): value
        for rank, result in enumerate(results)
        for key, value in result.items()
        if (bits and not value[0]) or value[1] > tolerance or value[2] > tolerance
    }
    assert results[0]
    assert not bad, bad


TWO_RANKS = ("padded", "dropless", "allgather", "tp", "tp+sp")
UNDER_INDUCTOR = ("dropless", "tp+sp")
"""Building kernels takes long: `test_overlap_ranks` has "padded", "tp+sp" has the collectives of "allgather", and what
"tp" has more is in the generated code of `test_generated_order`."""
FULL = ({"connectivity": "full", "layers": None},)


@pytest.mark.parametrize("layout", TWO_RANKS)
def test_two_ranks_bit_equal(layout: str) -> None:
    """Each connectivity with a shared expert, and without one; the tensor-parallel forms part their reductions."""
    wishes = {"deepseek_v3": (*FULL, *WISHES), "mixtral": FULL}
    check(run_ranks(compare_on_rank, 2, (layout,), wishes, timeout=300))


@pytest.mark.parametrize("layout", TWO_RANKS)
def test_two_ranks_under_aot_and_inductor(layout: str) -> None:
    inners = ("aot_eager", "inductor") if layout in UNDER_INDUCTOR else ("aot_eager",)
    arguments = ((layout,), {"llama4": FULL}, inners, ("moe", "moe"))
    results = run_ranks(compare_on_rank, 2, *arguments, timeout=300)
    check(results, bits=False, tolerance=1e-9)
    check([{k: v for k, v in result.items() if "aot" in k} for result in results], bits=False, tolerance=1e-11)


def test_merged_reductions_bit_equal() -> None:
    wishes = tuple({"connectivity": "full", "layers": layers, "merge_reductions": True} for layers in (None, (1, 2)))
    whole = {"connectivity": "mlp", "layers": None, "merge_reductions": True}
    by_model = {"deepseek_v3": (*wishes, whole), "mixtral": wishes[:1]}
    check(run_ranks(compare_on_rank, 2, ("tp", "tp+sp"), by_model, timeout=300))


@pytest.mark.parametrize(
    ("layouts", "name"),
    [
        (("padded+tp+sp", "dropless+tp"), "deepseek_v3"),
        (("allgather+tp+sp",), "deepseek_v3"),
        (("padded+tp",), "qwen3_moe"),
    ],
    ids=lambda layouts: layouts if isinstance(layouts, str) else layouts[0],
)
def test_four_ranks(layouts: tuple[str, ...], name: str) -> None:
    """Two ways to be parallel at once, with and without sequence parallelism, with a shared expert and without one."""
    of_experts = (("eager",), ("moe", "moe"))  # dense layers are tensor-parallel in the same way on two ranks
    check(run_ranks(compare_on_rank, 4, layouts, {name: FULL}, *of_experts, timeout=300))


def report_on_rank(rank: int, world_size: int) -> dict[str, Any]:
    """Counts of collectives that the reports of one rank show."""
    found: dict[str, Any] = {}
    for layout in ("padded", "allgather", "tp", "tp merged", "tp+sp"):
        torch.compiler.reset()
        model = build("deepseek_v3", parallel=parallel_config(layout.split()[0], world_size), **SMALL)
        options = {"inner": "eager", **({"merge_reductions": True} if "merged" in layout else {})}
        with torch.no_grad():
            torch.compile(model, backend="farskip", fullgraph=True, options=options)(
                torch.zeros(2, 3, dtype=torch.long)
            )
        report = farskip_compile.reports().compiles[-1]
        found[layout] = (
            report.collectives_parted,
            report.reductions_merged,
            {row.name: report.table.collectives(row) for row in report.rows},
        )
    return found


def test_reports_name_the_collectives() -> None:
    for found in run_ranks(report_on_rank, 2):
        parted, merged, rows = found["padded"]
        assert (parted, merged) == (0, 0)
        assert rows["moe.1"] == ("all_to_all_single", "all_to_all_single")
        assert rows["attention.1"] == ()
        parted, merged, rows = found["tp"]
        assert (parted, merged) == (1, 0)  # moe.1 feeds the attention of layer 2; nothing reads behind moe.2
        assert set(rows["attention.1"]) == {"all_reduce"}
        assert found["tp merged"][:2] == (1, 1)
        parted, _, rows = found["allgather"]
        assert parted == 0
        assert rows["moe.1"] == ("all_gather_into_tensor", "reduce_scatter_tensor")
        parted, _, rows = found["tp+sp"]
        assert parted == 1
        assert rows["attention.1"] == ("all_gather_into_tensor", "reduce_scatter_tensor")
        assert rows["moe.1"] == ("all_gather_into_tensor", "reduce_scatter_tensor", "reduce_scatter_tensor")
