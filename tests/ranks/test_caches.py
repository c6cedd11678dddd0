"""Inductor's caches stay on and stay right: warm in a second process, never stale after a change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from farskip_compile import FarSkipConfig
from farskip_compile.inductor_passes import PostGradPass
from farskip_compile.ranks.identity import identity_of
from tests.economy import share_headers

pytestmark = pytest.mark.xdist_group("caches")  # one worker, so that the cache of `folder` is filled once

ROOT = Path(__file__).parents[2]

SCRIPT = textwrap.dedent(
    """
    import json, sys
    import torch
    import farskip_compile
    from farskip_compile.ranks import identity
    from farskip_compile.models import FarSkipForm, build
    from tests.compare import run_with_gradients

    from tests.economy import scalar_kernels

    def found(asked):
        torch.compiler.reset()
        counters = torch._dynamo.utils.counters
        counters.clear()
        options, layers = asked.get("options", {}), asked.get("layers", ("moe", "moe"))
        model = build("llama4", dtype=torch.float64, vocab_size=32, hidden_size=32, layers=layers)
        ids = torch.arange(12).view(2, 6)
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
        oracle = FarSkipForm(model, connectivity=options.get("connectivity", "full"))
        if asked.get("train"):
            output, gradients = run_with_gradients(compiled, model, ids)
            expected, expected_gradients = run_with_gradients(oracle, model, ids)
            for name, gradient in expected_gradients.items():
                torch.testing.assert_close(gradients[name], gradient, rtol=1e-7, atol=1e-7)
        else:
            with torch.no_grad():
                output, expected = compiled(ids), oracle(ids)
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
        inductor, autograd = counters["inductor"], counters["aot_autograd"]
        report = farskip_compile.last_reports()[-1]
        return {
            "aot_hits": autograd["autograd_cache_hit"],
            "aot_misses": autograd["autograd_cache_miss"],
            "bypasses": inductor["fxgraph_cache_bypass"] + autograd["autograd_cache_bypass"],
            "outcome": str(report.outcome),
            "rewired": list(report.rewired_rows),
        }

    torch.set_num_threads(1)
    unedited = identity.source_hash
    results = []
    for asked in json.loads(sys.argv[1]):
        identity.source_hash = (lambda: "the package after an edit") if asked.get("edited_source") else unedited
        with scalar_kernels():
            results.append(found(asked))
    print(json.dumps(results))
    """
)


def run(folder: Path, *each: dict[str, Any]) -> list[dict[str, Any]]:
    """Compile, and train one step, as each asks, one after the other in one fresh process; counters and reports."""
    if not (folder / "precompiled_headers").exists():
        share_headers(folder)
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
    }
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(each)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the inference artifact of the default configuration."""
    folder = tmp_path_factory.mktemp("cache")
    (cold,) = run(folder, {})
    assert (cold["aot_hits"], cold["aot_misses"], cold["bypasses"]) == (0, 1, 0)
    return folder


ASKED: dict[str, dict[str, Any]] = {
    "the same": {},
    "other connectivity": {"options": {"connectivity": "mlp"}},
    "other option of Inductor": {"options": {"inductor": {"epilogue_fusion": False}}},
    "edited source": {"edited_source": True},
}


@pytest.fixture(scope="session")
def second(folder: Path) -> dict[str, dict[str, Any]]:
    """What a second process finds in that cache; first what the first one asked for."""
    return dict(zip(ASKED, run(folder, *ASKED.values()), strict=True))


def test_second_process_hits_and_still_reports(second: dict[str, dict[str, Any]]) -> None:
    again = second["the same"]
    assert (again["aot_hits"], again["aot_misses"], again["bypasses"]) == (1, 0, 0)
    assert again["outcome"] == "rewired"
    assert again["rewired"] == ["moe.0", "attention.1", "moe.1"]


def test_second_training_process_hits(tmp_path: Path) -> None:
    """Forward and backward come from the cache, and the gradients are still the oracle's (checked in the script)."""
    (cold,), (warm,) = (run(tmp_path, {"train": True, "layers": ["moe"]}) for _ in range(2))
    assert (cold["aot_hits"], warm["aot_hits"]) == (0, 1)


@pytest.mark.parametrize("other", list(ASKED)[1:])
def test_what_was_made_for_something_else_is_not_taken(other: str, second: dict[str, dict[str, Any]]) -> None:
    """The script compares the results with the oracle of the connectivity asked for."""
    found = second[other]
    assert (found["aot_hits"], found["aot_misses"]) == (0, 1)


def test_identity_covers_configuration_and_checkpoint_tags() -> None:
    """Opened checkpoints differ from none in metadata only, which Inductor's own keys ignore."""

    def uuid(config: FarSkipConfig, tagged: bool) -> Any:
        graph = torch.fx.Graph()
        node = graph.call_function(torch.relu, (graph.placeholder("x"),))
        graph.output(node)
        if tagged:
            node.meta["recompute"] = "PREFER_RECOMPUTE"
        return PostGradPass(identity_of(config, torch.fx.GraphModule({}, graph), None)).uuid()

    base = uuid(FarSkipConfig(), tagged=False)
    assert base == uuid(FarSkipConfig(), tagged=False)
    others = [uuid(FarSkipConfig(), tagged=True)]
    configurations: list[dict[str, Any]] = [{"connectivity": "mlp"}, {"layers": (0, 1)}, {"disable_passes": ["tags"]}]
    others += [uuid(FarSkipConfig(**asked), tagged=False) for asked in configurations]
    assert len({base, *others}) == 5


def test_a_pass_of_the_user_without_identity_turns_caching_off() -> None:
    assert PostGradPass("ours").uuid() == ("ours",)
    assert PostGradPass("ours", print).uuid() is None


def test_structured_trace_holds_the_report(folder: Path, tmp_path: Path) -> None:
    os.environ["TORCH_TRACE"] = str(tmp_path)
    try:
        run(folder, {})
    finally:
        del os.environ["TORCH_TRACE"]
    lines = "".join(path.read_text() for path in tmp_path.iterdir())
    assert '"name": "farskip_report"' in lines
    assert '"outcome": "rewired"' in lines
