# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.gpu.user_kernels generate|run FOLDER`: a kernel of the user's writes in place beside an exchange.

A copy of what is sent is written to by the kernel, and there is a product to put under the exchange. `generate` writes
the program for an H100, by this package and by plain Inductor, to FOLDER; Dynamo knows no kernel of the interpreter, so
`run` is another process: it runs both over a link that uses its buffers to the last, and prints, as JSON, whether the
results are right, or what was found.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.gpu.before_torch import load_device

OURS, PLAIN = "ours.py", "plain.py"
SIZE = 64


def generate(folder: Path) -> dict[str, Any]:
    load_device()
    import torch
    from torch._dynamo.backends.registry import lookup_backend

    import farskip_compile
    from tests.gpu.add_kernel import add
    from tests.gpu.pretended import pretended
    from tests.gpu.programs import generate as programs
    from tests.late_link import late_link

    c10d = torch.ops._c10d_functional

    class Program(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in "xwy":
                self.register_buffer(name, torch.ones(SIZE, SIZE))

        def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
            sent = self.x * 2 + ids.sum()
            came = c10d.wait_tensor(c10d.all_to_all_single(sent, [SIZE // 2] * 2, [SIZE // 2] * 2, "0"))
            written = sent.clone()
            add[(SIZE,)](written, self.y)
            return came + 1, written, (self.w @ self.w) @ self.w + written.sum()

    ours = farskip_compile.backend(connectivity="none", check_order=False, strict=False)
    with late_link(2), pretended("h100"), torch.no_grad():
        for name, backend in ((OURS, ours), (PLAIN, lookup_backend("inductor"))):
            found = programs(Program, torch.zeros(2, dtype=torch.int64), backend)
            (folder / name).write_text(found.codes[0])
            (folder / f"{name}.json").write_text(json.dumps(found.sources))
    return {}


def run(folder: Path) -> dict[str, Any]:
    os.environ["TRITON_INTERPRET"] = "1"
    load_device()
    import torch

    import farskip_compile.compiler.backend  # noqa: F401 (operators)
    from tests.gpu.interpreted import interpreter, load
    from tests.gpu.pretended import pretended
    from tests.late_link import BufferInFlightError, late_link

    x, w, y = torch.rand(SIZE, SIZE), torch.eye(SIZE), torch.full((SIZE, SIZE), 100.0)
    sent, written = x * 2, x * 2 + y
    right = (sent + 1, written, w + written.sum())
    found: dict[str, Any] = {}
    for name in (OURS, PLAIN):
        sources = json.loads((folder / f"{name}.json").read_text())
        given = {f"L['self']._buffers['{key}']": value for key, value in zip("xwy", (x, w, y), strict=True)}
        inputs = [given.get(source, torch.zeros(2, dtype=torch.int64)).clone() for source in sources]
        with late_link(2), pretended("h100"), interpreter(), torch.no_grad():
            try:
                results = load((folder / name).read_text())(inputs)
            except BufferInFlightError as error:
                found[name] = str(error)
            else:
                pairs = zip(results, right, strict=True)
                found[name] = max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
    return found


if __name__ == "__main__":
    print(json.dumps({"generate": generate, "run": run}[sys.argv[1]](Path(sys.argv[2]))))
