# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.gpu.captured SPEC`: where launches and waits are in a program with CUDA graphs, and what it gives.

SPEC is JSON: `mode` (how experts are parallel), `inductor` (more of its options). Prints JSON: for the forward and the
backward program the order of launches (L) and waits (W) inside each CUDA graph, in the order in which those run, and
what is called around them: a number for a CUDA graph; and how far output and gradients are from eager, with the parts
run one by one on the CPU.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

from tests.gpu.before_torch import load_device


def main(spec: dict[str, Any]) -> dict[str, Any]:
    os.environ["TRITON_INTERPRET"] = "1"
    load_device()
    import torch

    import farskip_compile
    from farskip_compile.models import ParallelConfig, build
    from tests.gpu.case import SIZES, off, run
    from tests.gpu.pretended import pretended
    from tests.gpu.programs import generate
    from tests.late_link import late_link

    with late_link(2) as group:
        capacity = {"capacity_factor": 1.25} if spec["mode"] == "padded" else {}
        parallel = ParallelConfig(ep_group=group, ep_mode=spec["mode"], **capacity)
        options: dict[str, Any] = {"connectivity": "full", "check_order": False}

        def made() -> torch.nn.Module:
            torch.manual_seed(0)
            return build("deepseek_v3", dtype=torch.float32, parallel=parallel, **SIZES)

        model, ids = made(), torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(0))
        right = torch.compile(model, backend=farskip_compile.backend(inner="eager", **options), fullgraph=True)(ids)
        tangent = torch.ones_like(right)
        gradients = torch.autograd.grad(right, list(model.parameters()), tangent)
        with pretended("h100"):
            backend = farskip_compile.backend(inductor={"triton.cudagraphs": True, **spec["inductor"]}, **options)
            programs = generate(made, ids, backend)
        found = run(made(), ids, programs, tangent, "h100")
        wanted = {"output": right, **dict(zip(dict(model.named_parameters()), gradients, strict=True))}
        distances = {name: off(found[name], value) for name, value in wanted.items()}
    return {"programs": [_parts(code) for code in programs.codes], "off": distances}


def _parts(code: str) -> dict[str, Any]:
    graphs = re.split(r"^def partition_(\d+)\(", code, flags=re.MULTILINE)
    bodies = dict(zip(map(int, graphs[1::2]), graphs[2::2], strict=True))
    around = code.partition("    def call(self, args):")[2].partition("\nrunner = ")[0]
    return {
        "graphs": {number: _order(body.partition("\n\n")[0]) for number, body in bodies.items()},
        "around": _order(around),
        "copies": len(re.findall(r" = torch\.ops\.farskip\.to_host\.", code)),
        "reads": len(re.findall(r"\.item\(\)", code)),
    }


def _order(body: str) -> str:
    called = re.findall(
        r"^(?: *|.* = )torch\.ops\._c10d_functional\.(\w+)\.|self\.partitions\[(\d+)\]\(", body, re.MULTILINE
    )
    return "".join(graph or ("W" if name == "wait_tensor" else "L") for name, graph in called)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
