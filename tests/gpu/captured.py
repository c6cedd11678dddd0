"""`python -m tests.gpu.captured SPEC`: where launches and waits are in a program with CUDA graphs; prints JSON.

SPEC is JSON: `mode` (how experts are parallel), `ours` (False: plain Inductor), `inductor` (more of its options). For
the forward and the backward program: the order of launches (L) and waits (W) inside each CUDA graph, in the order in
which those run, and what is called around them: a number for a CUDA graph.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any
from unittest import mock

from tests.gpu.before_torch import load_device


def main(spec: dict[str, Any]) -> dict[str, Any]:
    load_device()
    import torch

    import farskip_compile
    from farskip_compile.models import ParallelConfig, build
    from tests.gpu.pretended import pretended
    from tests.gpu.programs import generate
    from tests.late_link import late_link

    options = {"triton.cudagraphs": True, **spec["inductor"]}
    with late_link(2) as group:
        capacity = {"capacity_factor": 1.25} if spec["mode"] == "padded" else {}
        parallel = ParallelConfig(ep_group=group, ep_mode=spec["mode"], **capacity)
        sizes = {"layers": ("moe", "moe"), "hidden_size": 32, "heads": 2, "experts": 8, "vocab_size": 64}
        how = {"connectivity": "full", "check_order": False, "inductor": options}
        # asked of a build with CUDA, as the allocator has to be that of PyTorch for a capture
        allocator = mock.patch(
            "torch._inductor.cudagraph_utils.check_caching_allocator_for_cudagraphs", return_value=None
        )
        with pretended("h100"), allocator:
            backend = farskip_compile.backend(**how, **spec.get("ours", {}))
            found = generate(lambda: build("deepseek_v3", dtype=torch.float32, parallel=parallel, **sizes),
                             torch.randint(0, 64, (2, 8)), backend)  # fmt: skip
    return {"programs": [_parts(code) for code in found.codes]}


def _parts(code: str) -> dict[str, Any]:
    graphs = re.split(r"^def partition_(\d+)\(", code, flags=re.MULTILINE)
    bodies = dict(zip(map(int, graphs[1::2]), graphs[2::2], strict=True))
    around = code.partition("    def call(self, args):")[2].partition("\nrunner = ")[0]
    return {
        "graphs": {number: _order(body.partition("\n\n")[0]) for number, body in bodies.items()},
        "around": _order(around),
    }


def _order(body: str) -> str:
    called = re.findall(
        r"^(?: *|.* = )torch\.ops\._c10d_functional\.(\w+)\.|self\.partitions\[(\d+)\]\(", body, re.MULTILINE
    )
    return "".join(graph or ("W" if name == "wait_tensor" else "L") for name, graph in called)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
