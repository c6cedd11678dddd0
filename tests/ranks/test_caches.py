# SPDX-License-Identifier: Apache-2.0
"""Inductor's caches stay on and stay right: warm in a second process, never stale after a change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from farskip_compile import FarSkipConfig
from farskip_compile.compiler.inductor_passes.plan import LayerContext
from farskip_compile.compiler.inductor_passes.post_grad import PostGradPass
from farskip_compile.compiler.ranks.identity import identity_of
from tests.economy import share_headers

pytestmark = pytest.mark.xdist_group("caches")  # one worker, so that one cache is filled

ROOT = Path(__file__).parents[2]

SCRIPT = textwrap.dedent(
    """
    import json, sys
    import torch
    import farskip_compile
    from farskip_compile.compiler.ranks import identity
    from farskip_compile.models import FarSkipForm, build
    from tests.compare import run_with_gradients

    from tests.economy import scalar_kernels

    def found(asked):
        torch.compiler.reset()
        counters = torch._dynamo.utils.counters
        counters.clear()
        options = asked.get("options", {})
        model = build("llama4", dtype=torch.float64, vocab_size=32, hidden_size=32, layers=("moe",))
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
        report = farskip_compile.reports().compiles[-1]
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


def run(folder: Path, *each: dict[str, Any], **variables: str) -> list[dict[str, Any]]:
    """Compile, and train one step, as each asks, one after the other in one fresh process; counters and reports."""
    if not (folder / "precompiled_headers").exists():
        share_headers(folder)
    environment = {
        **os.environ,
        **variables,
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


ASKED: dict[str, dict[str, Any]] = {
    "the same": {},
    "the same training": {"train": True},
    "other connectivity": {"options": {"connectivity": "none"}},
    "other option of Inductor": {"options": {"inductor": {"epilogue_fusion": False}}},
    "edited source": {"edited_source": True},
}
FIRST = ("the same", "the same training")


@dataclass(frozen=True)
class Second:
    """A second process, with a hash seed of its own, on the cache that the first one filled."""

    found: dict[str, dict[str, Any]]
    """What it finds for each of `ASKED`."""
    trace: str
    """Its structured trace."""


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Second:
    """The second process, behind the first: each starts anew, which takes longer than what most of them compile."""
    folder, traces = (tmp_path_factory.mktemp(name) for name in ("cache", "traces"))
    for cold in run(folder, *(ASKED[name] for name in FIRST)):
        assert (cold["aot_hits"], cold["aot_misses"], cold["bypasses"]) == (0, 1, 0)
    found = run(folder, *ASKED.values(), TORCH_TRACE=str(traces))
    return Second(dict(zip(ASKED, found, strict=True)), "".join(path.read_text() for path in sorted(traces.iterdir())))


def test_second_process_hits_and_still_reports(second: Second) -> None:
    again = second.found["the same"]
    assert (again["aot_hits"], again["aot_misses"], again["bypasses"]) == (1, 0, 0)
    assert again["outcome"] == "rewired"
    assert again["rewired"] == ["moe.0"]


def test_second_training_process_hits(second: Second) -> None:
    """Forward and backward come from the cache, and the gradients are still the oracle's (checked in the script)."""
    warm = second.found["the same training"]
    assert (warm["aot_hits"], warm["aot_misses"], warm["bypasses"]) == (1, 0, 0)


@pytest.mark.parametrize("other", [name for name in ASKED if name not in FIRST])
def test_what_was_made_for_something_else_is_not_taken(other: str, second: Second) -> None:
    """The script compares the results with the oracle of the connectivity asked for."""
    found = second.found[other]
    assert (found["aot_hits"], found["aot_misses"]) == (0, 1)


def test_identity_covers_configuration_checkpoint_tags_and_what_a_layer_is_run_among() -> None:
    """Opened checkpoints differ from none in metadata only, which Inductor's own keys ignore."""

    def uuid(config: FarSkipConfig, tagged: bool, **context: Any) -> Any:
        graph = torch.fx.Graph()
        node = graph.call_function(torch.relu, (graph.placeholder("x"),))
        graph.output(node)
        if tagged:
            node.meta["recompute"] = "PREFER_RECOMPUTE"
        return PostGradPass(identity_of(config, torch.fx.GraphModule({}, graph), None, LayerContext(**context))).uuid()

    base = uuid(FarSkipConfig(), tagged=False)
    assert base == uuid(FarSkipConfig(), tagged=False)
    others = [uuid(FarSkipConfig(), tagged=True)]
    configurations: list[dict[str, Any]] = [{"connectivity": "mlp"}, {"layers": (0, 1)}, {"disable_passes": ["tags"]}]
    others += [uuid(FarSkipConfig(**asked), tagged=False) for asked in configurations]
    others += [
        uuid(FarSkipConfig(), False, **one)
        for one in ({"bytes_outside": 1}, {"seconds_until_arrival": 0.5}, {"departure": "tail"})
    ]
    assert len({base, *others}) == 8


def test_a_pass_of_the_user_without_identity_turns_caching_off() -> None:
    assert PostGradPass("ours").uuid() == ("ours",)
    assert PostGradPass("ours", print).uuid() is None


def test_structured_trace_holds_each_report(second: Second) -> None:
    """Also that of a graph whose kernels come from the cache."""
    assert second.trace.count('"name": "farskip_report"') == len(ASKED)
    assert second.trace.count('"outcome": "rewired"') == len(ASKED) - 1
    assert second.trace.count('"outcome": "unchanged as asked"') == 1
