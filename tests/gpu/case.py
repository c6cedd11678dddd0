# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.gpu.case SPECS FOLDER`: models for devices, in a process of their own; prints JSON, by name.

SPECS is JSON, for each name: `device`; `mode` (how experts or products are parallel); `dtype`; `variant`, see
`tests.gpu.variants`; `inductor`, options for it; `sizes` of the model; `options` of the backend; and whether plain
Inductor is run `beside`. Each program is run, and written to FOLDER/DEVICE/NAME/ for `tests.gpu.kernels`.

Algorithm:
1. Generate forward and backward for the device, and note the order of kernels that was decided.
2. Run them by the interpreter, over a link that uses its buffers to the last.
3. Compare output and gradients with the model that has no variant, in eager mode, where it computes the same.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.gpu.before_torch import load_device

SIZES = {"layers": ("moe", "moe"), "hidden_size": 32, "heads": 2, "experts": 8, "vocab_size": 64}
GIVEN = {"device": "h100", "mode": "padded", "dtype": "float32", "variant": "", "inductor": {}, "sizes": {},
         "options": {}, "beside": False}  # fmt: skip
SAME_FUNCTION = ("flex", "grouped")


def main(specs: dict[str, Any], folder: Path) -> dict[str, Any]:
    os.environ["TRITON_INTERPRET"] = "1"
    load_device()
    from tests.late_link import late_link

    with late_link(2) as group:
        return {name: _case({**GIVEN, **spec}, group, folder / name) for name, spec in specs.items()}


def _case(spec: dict[str, Any], group: Any, folder: Path) -> dict[str, Any]:
    import torch

    import farskip_compile
    from farskip_compile.models import ParallelConfig, build
    from tests.gpu.order import differences, watching
    from tests.gpu.pretended import pretended
    from tests.gpu.programs import generate, order_of
    from tests.gpu.variants import change

    mode, dtype = spec["mode"], getattr(torch, spec["dtype"])
    how: dict[str, Any] = {"tp_group": group} if mode == "tp" else {"ep_group": group, "ep_mode": mode}
    if mode == "padded":
        how["capacity_factor"] = 1.25

    def made(variant: str = spec["variant"]) -> Any:
        torch.manual_seed(0)
        sizes = {**SIZES, **spec["sizes"]}
        return change(build("deepseek_v3", dtype=dtype, parallel=ParallelConfig(**how), **sizes), variant, group)

    ids = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(0))
    options = {"connectivity": "full", "check_order": False, **spec["options"]}
    oracle = made("" if spec["variant"] in SAME_FUNCTION else spec["variant"])
    expected = torch.compile(oracle, backend=farskip_compile.backend(inner="eager", **options), fullgraph=True)(ids)
    tangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(expected.dtype)
    gradients = torch.autograd.grad(expected, list(oracle.parameters()), tangent, allow_unused=True)
    named = zip(dict(oracle.named_parameters()), gradients, strict=True)
    right = {"output": expected, **{name: gradient for name, gradient in named if gradient is not None}}

    def compiled(schedule: bool) -> tuple[Any, dict[str, float], Any]:
        farskip_compile.reports().clear()
        backend = farskip_compile.backend(inductor=spec["inductor"], schedule=schedule, **options)
        with pretended(spec["device"]), watching() as decided:
            programs = generate(made, ids, backend)  # 1
        found = run(made(), ids, programs, tangent, spec["device"])  # 2
        assert found.keys() == right.keys()
        return programs, {name: off(found[name], right[name]) for name in right}, decided  # 3

    programs, distances, decided = compiled(schedule=True)
    inside = folder.parent / spec["device"] / folder.name
    inside.mkdir(parents=True)
    for number, code in enumerate(programs.codes):
        (inside / f"program_{number}.py").write_text(code)
    reports = [[flight.launch for flight in report.flights] for report in farskip_compile.reports().schedules[-2:]]
    return {
        "off": distances,
        "beside": compiled(schedule=False)[1] if spec["beside"] else {},
        "orders": [order_of(code) for code in programs.codes],
        "differences": [differences(*pair) for pair in zip(programs.codes, decided, strict=True)],
        "launches": [[kernel.name for kernel in one if kernel.kind == "L"] for one in decided],
        "reported": reports,
    }


def run(model: Any, ids: Any, programs: Any, tangent: Any, device: str) -> dict[str, Any]:
    """Output, and the gradient of each parameter that has one, by the programs."""
    import torch

    from tests.gpu.interpreted import interpreter, load
    from tests.gpu.operators import on_cpu
    from tests.gpu.pretended import pretended

    class Given(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            return ids

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    inputs = [eval(source, {"L": Given(self=model)}) for source in programs.sources]
    with pretended(device), interpreter(), on_cpu(), torch.no_grad():
        forward, backward = (load(code) for code in programs.codes)
        outputs = forward([one.detach() if isinstance(one, torch.Tensor) else one for one in inputs])
        sizes = [one for one in outputs[1:] if not isinstance(one, torch.Tensor)]  # come first
        saved = [one for one in outputs[1:] if isinstance(one, torch.Tensor)]
        found = backward([*sizes, *saved, tangent])
    given = zip(inputs, found, strict=False)
    return {"output": outputs[0], **{names[id(one)]: gradient for one, gradient in given if gradient is not None}}


def off(found: Any, right: Any) -> float:
    """The largest difference over the largest number."""
    return float((found - right).detach().abs().max() / right.detach().abs().max().clamp_min(1e-30))


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]), Path(sys.argv[2]))))
