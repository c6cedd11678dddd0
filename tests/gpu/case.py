"""`python -m tests.gpu.case SPEC FOLDER`: one model for one device, in a process of its own; prints JSON.

SPEC is JSON: `device`, `mode` (how experts or products are parallel), `dtype`, `connectivity`, and whether to `run`
what is generated. Programs are written into FOLDER, for `tests.gpu.kernels`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.gpu.before_torch import load_device


def main(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    if spec["run"]:
        os.environ["TRITON_INTERPRET"] = "1"
    load_device()
    import torch

    import farskip_compile
    from farskip_compile.models import ParallelConfig, build
    from tests.gpu.pretended import pretended
    from tests.gpu.programs import generate, order_of
    from tests.late_link import late_link

    dtype = getattr(torch, spec["dtype"])
    with late_link(2) as group:
        mode = spec["mode"]
        how: dict[str, Any] = {"tp_group": group} if mode == "tp" else {"ep_group": group, "ep_mode": mode}
        if mode == "padded":
            how["capacity_factor"] = 1.25
        sizes = {"layers": ("moe", "moe"), "hidden_size": 32, "heads": 2, "experts": 8, "vocab_size": 64}

        def made() -> torch.nn.Module:
            torch.manual_seed(0)
            return build("deepseek_v3", dtype=dtype, parallel=ParallelConfig(**how), **sizes)

        ids = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(0))
        options = {"connectivity": spec["connectivity"], "check_order": False}
        with pretended(spec["device"]):
            programs = generate(made, ids, farskip_compile.backend(**options))
        for number, code in enumerate(programs.codes):
            (folder / f"program_{number}.py").write_text(code)
        schedules = [report.to_json() for report in farskip_compile.last_reports()]
        found: dict[str, Any] = {"orders": [order_of(code) for code in programs.codes], "reports": len(schedules)}
        if spec["run"]:
            found |= _run(made(), ids, programs, options, spec["device"])
    return found


def _run(model: Any, ids: Any, programs: Any, options: dict[str, Any], device: str) -> dict[str, Any]:
    """How far the programs are off from the same wiring in eager, output and gradients, over what is largest."""
    import torch

    import farskip_compile
    from tests.gpu.interpreted import interpreter, load
    from tests.gpu.pretended import pretended

    eager = torch.compile(model, backend=farskip_compile.backend(inner="eager", **options), fullgraph=True)
    expected = eager(ids)
    tangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(expected.dtype)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(expected, list(parameters.values()), tangent, allow_unused=True)
    wanted = {id(p): (name, g) for (name, p), g in zip(parameters.items(), gradients, strict=True) if g is not None}
    with pretended(device), interpreter():
        forward, backward = (load(code) for code in programs.codes)

    class Given(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            return ids

    inputs = [eval(source, {"L": Given(self=model)}) for source in programs.sources]
    with torch.no_grad(), interpreter():
        outputs = forward([one.detach() if isinstance(one, torch.Tensor) else one for one in inputs])
        sizes = [one for one in outputs[1:] if not isinstance(one, torch.Tensor)]  # come first
        saved = [one for one in outputs[1:] if isinstance(one, torch.Tensor)]
        found = backward([*sizes, *saved, tangent])
    off = {"output": _off(outputs[0], expected)}
    for one, gradient in zip(inputs, found, strict=False):
        if gradient is not None and id(one) in wanted:
            name, right = wanted.pop(id(one))
            off[name] = _off(gradient, right)
    return {"off": off, "without": [name for name, _ in wanted.values()]}


def _off(found: Any, right: Any) -> float:
    return float((found - right).detach().abs().max() / right.detach().abs().max().clamp_min(1e-30))


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]), Path(sys.argv[2]))))
