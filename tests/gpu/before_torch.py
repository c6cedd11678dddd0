# SPDX-License-Identifier: Apache-2.0
"""To be called before torch is imported: from then on a CPU build of torch has a CUDA device for fake tensors.

In:    g++ and the headers of the torch that is installed.
Out:   a library, built once for each version of torch, and loaded.
Never: imports torch; touches a process that has imported it.

Algorithm:
1. Find torch without importing it.
2. Build `no_device.cpp` against its headers, under a name that says of what it was made.
3. Load torch's own libraries, whose symbols it needs, then it: its registrations come first.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("no_device.cpp")
LIBRARIES = ("libc10.so", "libtorch_cpu.so")
COMPILER = "g++"


def missing() -> str | None:
    """Why this machine can't do it; None: it can."""
    return None if shutil.which(COMPILER) else f"{COMPILER} is not installed"


def load_device() -> None:
    """See the module's contract.

    Raises:
        RuntimeError: torch has been imported already, or does not build.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch has been imported already")
    spec = importlib.util.find_spec("torch")  # 1
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    library = _built(torch)  # 2
    for name in (*(torch / "lib" / one for one in LIBRARIES), library):  # 3
        ctypes.CDLL(str(name), ctypes.RTLD_GLOBAL)


def _built(torch: Path) -> Path:
    made_of = SOURCE.read_bytes() + importlib.metadata.version("torch").encode() + str(torch).encode()
    library = Path(tempfile.gettempdir()) / f"farskip_no_device_{hashlib.sha256(made_of).hexdigest()[:16]}.so"
    if not library.exists():
        mine = library.with_suffix(f".{os.getpid()}")
        include = torch / "include"
        folders = [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}", f"-L{torch / 'lib'}"]
        command = [COMPILER, "-O0", "-shared", "-fPIC", "-std=c++20", str(SOURCE), "-o", str(mine), *folders]
        done = subprocess.run([*command, "-lc10", "-ltorch_cpu"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{COMPILER} did not build {SOURCE.name}:\n{done.stderr[-3000:]}")
        mine.replace(library)  # others may build it at the same time
    return library
