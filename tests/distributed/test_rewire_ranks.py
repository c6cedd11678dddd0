"""Rewired models on real gloo ranks against the hand-written form: expert, tensor and both parallelisms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import farskip_compile
from farskip_compile.models import FarSkipForm, ParallelConfig, build
from tests.compare import relative_difference, run_with_gradients
from tests.distributed.ranks import run_ranks

Result = dict[str, tuple[bool, float, float]]


def compare_on_rank(
    rank: int,
    world_size: int,
    layout: str,
    names: tuple[str, ...],
    wishes: tuple[dict[str, Any], ...],
    inner: str,
) -> Result:
    """For each model and wish: outputs bit-equal?, largest output and gradient differences."""
    parallel = parallel_config(layout, world_size)
    results: Result = {}
    for name in names:
        for wish in wishes:
            torch.compiler.reset()
            model = build(name, dtype=torch.float64, parallel=parallel, **SMALL)
            ids_seed = 1 if layout == "tp" else rank // 2 if layout == "ep+tp" else rank
            ids = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(ids_seed))
            oracle = FarSkipForm(model, **wish)
            expected, expected_gradients = run_with_gradients(oracle, model, ids)
            options = {key: value for key, value in wish.items() if value is not None}
            compiled = torch.compile(model, backend="farskip", fullgraph=True, options={**options, "inner": inner})
            output, gradients = run_with_gradients(compiled, model, ids)
            assert gradients.keys() == expected_gradients.keys()
            worst = max(relative_difference(gradients[key], expected_gradients[key]) for key in gradients)
            key = f"{name} {sorted(options.items())}"
            results[key] = (torch.equal(output, expected), relative_difference(output, expected), worst)
    return results


SMALL: dict[str, Any] = {"vocab_size": 32, "layers": ("dense", "moe", "moe"), "hidden_size": 32}
WISHES: tuple[dict[str, Any], ...] = tuple(
    {"connectivity": connectivity, "layers": layers}
    for connectivity in ("full", "attention", "mlp", "none")
    for layers in (None, (2, 2))
)


def parallel_config(layout: str, world_size: int) -> ParallelConfig:
    world = dist.group.WORLD
    if layout in ("padded", "dropless"):
        return ParallelConfig(ep_group=world, ep_mode=layout)  # type: ignore[arg-type]
    if layout == "tp":
        return ParallelConfig(tp_group=world)
    tp_groups = [dist.new_group([first, first + 1]) for first in range(0, world_size, 2)]
    ep_groups = [dist.new_group(list(range(first, world_size, 2))) for first in range(2)]
    rank = dist.get_rank()
    return ParallelConfig(ep_group=ep_groups[rank % 2], tp_group=tp_groups[rank // 2])


def check(results: list[Result], *, bits: bool = True, tolerance: float = 1e-12) -> None:
    bad = {
        (rank, key): value
        for rank, result in enumerate(results)
        for key, value in result.items()
        if (bits and not value[0]) or value[1] > tolerance or value[2] > tolerance
    }
    assert results[0]
    assert not bad, bad


@pytest.mark.parametrize("layout", ["padded", "dropless", "tp"])
def test_two_ranks_bit_equal(layout: str) -> None:
    """Both with a shared expert and without one; the tensor-parallel form parts its reductions."""
    check(run_ranks(compare_on_rank, 2, layout, ("deepseek_v3", "mixtral"), WISHES, "eager"))


@pytest.mark.parametrize("layout", ["padded", "dropless", "tp"])
def test_two_ranks_under_aot_and_inductor(layout: str) -> None:
    wish = ({"connectivity": "full", "layers": None},)
    check(run_ranks(compare_on_rank, 2, layout, ("llama4",), wish, "aot_eager"), bits=False, tolerance=1e-11)
    check(run_ranks(compare_on_rank, 2, layout, ("llama4",), wish, "inductor"), bits=False, tolerance=1e-9)


def test_merged_reductions_bit_equal() -> None:
    wishes = tuple({"connectivity": "full", "layers": layers, "merge_reductions": True} for layers in (None, (1, 2)))
    check(run_ranks(compare_on_rank, 2, "tp", ("deepseek_v3", "llama4", "mixtral"), wishes, "eager"))


def test_four_ranks_both_parallelisms() -> None:
    wishes = WISHES[:1] + WISHES[2:3]
    check(run_ranks(compare_on_rank, 4, "ep+tp", ("deepseek_v3", "qwen3_moe"), wishes, "eager"))


def report_on_rank(rank: int, world_size: int) -> dict[str, Any]:
    """Counts of collectives that the reports of one rank show."""
    found: dict[str, Any] = {}
    for layout in ("padded", "tp", "tp merged"):
        torch.compiler.reset()
        model = build("deepseek_v3", parallel=parallel_config(layout.split()[0], world_size), **SMALL)
        options = {"inner": "eager", **({"merge_reductions": True} if "merged" in layout else {})}
        with torch.no_grad():
            torch.compile(model, backend="farskip", fullgraph=True, options=options)(
                torch.zeros(1, 3, dtype=torch.long)
            )
        report = farskip_compile.last_reports()[-1]
        found[layout] = (
            report.collectives_parted,
            report.reductions_merged,
            {row.name: row.collectives for row in report.rows},
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
