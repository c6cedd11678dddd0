# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.gpu.kernels FOLDER`: compile the kernels of the programs in FOLDER/DEVICE/ for each DEVICE.

Prints JSON: for each device how many different kernels there were, how many compiled to the device's own code, and what
the others said. No device and no toolkit are needed: Triton brings the assembler of one vendor and the linker of the
other.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.gpu.before_torch import load_device

KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)'''", re.DOTALL)


def main(folder: Path) -> dict[str, Any]:
    load_device()
    from tests.gpu.pretended import DEVICES

    return {name: _compile(name, folder / name) for name in DEVICES if (folder / name).is_dir()}


def _compile(name: str, folder: Path) -> dict[str, Any]:
    from torch._inductor.codecache import PyCodeCache

    from tests.gpu.pretended import pretended

    programs = [path.read_text() for path in sorted(folder.rglob("program_*.py"))]
    # each graph counts its kernels anew: the same name may stand for two, and the same kernel have two names
    kernels = {source.replace(kernel, "kernel"): kernel for code in programs for kernel, source in KERNEL.findall(code)}
    failed: dict[str, str] = {}
    with pretended(name) as device:
        for source, kernel in kernels.items():
            try:
                compiled = PyCodeCache.load(source).kernel
                compiled.precompile(warm_cache_only=True)
                if not all(device.kind in one.kernel.asm for one in compiled.compile_results):
                    failed[kernel] = f"no {device.kind}"
            except Exception as error:
                failed[kernel] = f"{type(error).__name__}: {error}"[:500]
    return {"kernels": len(kernels), "compiled": len(kernels) - len(failed), "failed": failed}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
