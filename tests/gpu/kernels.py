"""`python -m tests.gpu.kernels DEVICE FOLDER`: compile the kernels of the programs in FOLDER for a device.

Prints JSON: how many there were, how many compiled to the device's own code, and what the others said. No device and no
toolkit are needed: Triton brings the assembler of one vendor and the linker of the other.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.gpu.before_torch import load_device

KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)'''", re.DOTALL)


def main(name: str, folder: Path) -> dict[str, Any]:
    load_device()
    from torch._inductor.codecache import PyCodeCache

    from tests.gpu.pretended import pretended

    found = [one for path in sorted(folder.glob("program_*.py")) for one in KERNEL.findall(path.read_text())]
    failed: dict[str, str] = {}
    with pretended(name) as device:
        for kernel, source in dict(found).items():
            try:
                compiled = getattr(PyCodeCache.load(source), kernel)
                compiled.precompile(warm_cache_only=True)
                if not all(device.kind in one.kernel.asm for one in compiled.compile_results):
                    failed[kernel] = f"no {device.kind}"
            except Exception as error:
                failed[kernel] = f"{type(error).__name__}: {error}"[:500]
    return {"kernels": len(dict(found)), "compiled": len(dict(found)) - len(failed), "failed": failed}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
