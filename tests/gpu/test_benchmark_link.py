# SPDX-License-Identifier: Apache-2.0
"""The kernels by which `benchmarks/gpu.py` emulates a link: compiled for a GPU without one, and as it launches them.

Triton compiles for a target that it is told; the oracle is the assembler's text, and our reports, which must take the
kernels for collectives of the kind that they stand for.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from farskip_compile.costs.profile import COLLECTIVE_KINDS
from farskip_compile.measure.profiling import overlap, read_trace
from tests.gpu.test_programs import REASON, process

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


def main() -> dict[str, Any]:
    """What each kernel compiles to, and how a launch is asked for; in a process that has Triton."""
    from unittest import mock

    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    sys.path.insert(0, str(BENCHMARKS))
    from gpu_bench import spin

    found: dict[str, Any] = {"kinds": {}, "launches": []}
    for kind, kernel in spin.KERNELS.items():
        source = ASTSource(kernel, signature={"ended": "*i64", "nanoseconds": "i32"})
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": spin.ONE_WARP})
        found["kinds"][kind] = {"ptx": built.asm["ptx"], "cubin": len(built.asm["cubin"]), "name": built.metadata.name}

    class Recorded:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda ended, *given, **options: found["launches"].append([grid, ended.numel(), given, options])

    empty = torch.empty
    with (
        mock.patch.dict(spin.KERNELS, all_to_all=Recorded()),
        mock.patch.object(torch, "empty", lambda *sizes, device, **given: empty(*sizes, **given)),
    ):
        spin.spin("all_to_all", 1.5e-3, 0)
        spin.spin("all_to_all", 2e-5, 16)
        with mock.patch.object(torch.version, "hip", "7.0"):
            try:
                spin.spin("all_to_all", 1e-3, 0)
            except RuntimeError as error:
                found["refused"] = str(error)
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return process("tests.gpu.test_benchmark_link")


def test_a_collective_spins_by_the_gpus_clock(found: dict[str, Any]) -> None:
    for built in found["kinds"].values():
        assert built["cubin"] > 0
        code = built["ptx"].partition(".entry")[2]
        loop = re.search(r"^(\$\w+):(?:(?!^\$\w+:).)*?bra(?:\.uni)?\s+\1;", code, re.MULTILINE | re.DOTALL)
        assert loop is not None, "nothing is repeated"
        assert "%globaltimer" in loop[0], "the clock is read once only"
        assert code.count("%globaltimer") == 2  # at the start, and in the loop
        assert "st.global" in code.partition(loop[0])[2], "a loop without a result may be left out"


def test_reports_count_it_as_a_collective_of_its_kind(found: dict[str, Any], tmp_path: Path) -> None:
    names = {kind: built["name"] for kind, built in found["kinds"].items()}
    assert {*names} == {*COLLECTIVE_KINDS} - {"broadcast"}
    kernels = [*names.values(), "triton_poi_fused_add_0"]
    events = [
        {
            "ph": "X",
            "cat": "kernel",
            "name": name,
            "ts": 10 * place,
            "dur": 5,
            "pid": 0,
            "tid": 7,
            "args": {"stream": 7},
        }
        for place, name in enumerate(kernels)
    ]
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps({"traceEvents": events}))
    (rank,) = overlap([read_trace(trace)]).to_json()["ranks"]
    assert {kind["name"] for kind in rank["kinds"]} == {*names}
    assert rank["communication_ns"] == 5000 * len(names)


def test_launches_take_the_blocks_and_the_nanoseconds_that_they_are_told(found: dict[str, Any]) -> None:
    assert found["launches"] == [[[1], 1, [1_500_000], {"num_warps": 1}], [[16], 16, [20_000], {"num_warps": 32}]]
    assert "AMD" in found["refused"]


if __name__ == "__main__":
    print(json.dumps(main()))
