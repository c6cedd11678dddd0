# SPDX-License-Identifier: Apache-2.0
"""Models of transformers, loaded in parallel from a checkpoint, compiled whole, against the whole model in eager mode.

The oracle is independent of all that is tested here: the unsharded checkpoint, no ranks, no compiler. float64; norms
and routers of transformers compute in float32 in any case, so that a last bit may flip one of theirs: hence 1e-6.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import farskip_compile
from tests.compare import relative_difference
from tests.distributed.ranks import run_ranks

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("transformers.distributed.expert_parallel")  # since 5.22

from tests.distributed.hf_ranks import IDS, compiled_each, difference, equal, load, oracle, run_with_gradients, save

ROUNDING = 1e-6
LAYERS = {"qwen2_moe": 2, "deepseek_v3": 3}
"""Each has a layer with experts in front of another one."""
MODES = ("tp", "all_reduce", "farskip_all_to_all")
LEFT_OUT = {
    "qwen2_moe": {"moe.0": ("a0",), "attention.1": ("r0",), "moe.1": ("a1",)},
    "deepseek_v3": {"mlp.0": ("a0",), "moe.1": ("a1",), "attention.2": ("r1",), "moe.2": ("a2",)},
}  # fmt: skip
SHARED = {"qwen2_moe": (), "deepseek_v3": ("all_reduce",)}
"""Of the shared experts: transformers replicates those of Qwen2-MoE."""
ROUTED = {
    "tp": ("all_reduce",),
    "all_reduce": ("all_reduce",),
    "farskip_all_to_all": (*["all_to_all_single"] * 3, "all_gather_into_tensor"),
}
"""All-to-alls: of counts, dispatch and combine."""


WISHES = (None, {"connectivity": "none"}, {"connectivity": "full"})
"""Of one capture, of which the last report is kept; first the plain compile, which "none" must equal bit for bit."""


def report() -> dict[str, Any]:
    found = farskip_compile.reports().compiles[-1]
    table = found.table
    routed = [row for row in table.rows if any(name.startswith("r") for name in table.names(row.terms))]
    return {
        "wiring": (found.wiring_before, found.wiring_after),
        "left_out": found.left_out,
        "collectives": {table.collectives(row) for row in routed},
        "evidence": {table.evidence(row) for row in routed},
    }


def compare_on_rank(rank: int, world_size: int, path: str, modes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """For each mode, training and inference: what was found, and how far it is from the oracle."""
    whole = load(path, rank, world_size).train()
    expected = run_with_gradients(oracle(whole), whole, IDS)
    standard = whole(IDS).logits.detach()
    results: dict[str, dict[str, Any]] = {}
    for mode in modes:
        model = load(path, rank, world_size, mode).train()
        plain, as_written, trained = (run_with_gradients(run, model, IDS) for run in compiled_each(model, *WISHES))
        results[f"{mode} train"] = {
            **report(),
            "oracle": difference(trained, expected),
            "standard": relative_difference(trained[0], standard),
            "none is plain": equal(as_written, plain),
        }
        model.eval()
        with torch.no_grad():
            captured, unchanged, logits = (run(IDS) for run in compiled_each(model, *WISHES))
            results[f"{mode} eval"] = {
                **report(),
                "oracle": (relative_difference(logits, expected[0]),),
                "standard": relative_difference(logits, standard),
                "as eager on ranks": torch.equal(logits, oracle(model)(IDS)),
                "none is plain": torch.equal(unchanged, captured),
            }
    return results


def check(family: str, modes: tuple[str, ...], results: dict[str, dict[str, Any]]) -> None:
    assert len(results) == 2 * len(modes)
    for name, found in results.items():
        mode = name.split()[0]
        assert found["wiring"] == ("standard", "full"), name
        assert found["left_out"] == LEFT_OUT[family], name
        (collectives,) = found["collectives"]
        assert sorted(collectives) == sorted(ROUTED[mode] + SHARED[family]), name
        (evidence,) = found["evidence"]
        assert ("all-to-all" if "all_to_all" in mode else "top-k") in evidence, name
        assert max(found["oracle"]) < ROUNDING, (name, found)
        assert found["standard"] > 1e-2, "FarSkip is another function"
        assert found.get("as eager on ranks", True), name
        assert found["none is plain"], name


@pytest.mark.parametrize("family", LEFT_OUT)
@pytest.mark.parametrize("modes", [MODES[:1], MODES[1:]], ids=["tensor parallel", "expert parallel"])
def test_two_ranks(modes: tuple[str, ...], family: str, tmp_path: Path) -> None:
    path = save(family, LAYERS[family], tmp_path)
    for results in run_ranks(compare_on_rank, 2, path, modes, timeout=400):
        check(family, modes, results)


def test_four_ranks(tmp_path: Path) -> None:
    """The experts of one layer on four ranks; a slice of the tokens each."""
    path = save("qwen2_moe", LAYERS["qwen2_moe"], tmp_path)
    for results in run_ranks(compare_on_rank, 4, path, MODES[-1:], timeout=400):
        check("qwen2_moe", MODES[-1:], results)
