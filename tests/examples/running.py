# SPDX-License-Identifier: Apache-2.0
"""Run a script of examples/ as it stands, on one process or as torchrun starts it on two.

In:    its name and arguments, and a folder of the test's own.
Out:   what its first rank prints.
Never: changes the script. Processes are forked from one that has imported torch, and Inductor's kernels are built in
       the way that takes the compiler least time (`tests.economy`): neither is what a test of an example is about.
"""

from __future__ import annotations

import runpy
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

from torch._inductor.runtime.runtime_utils import cache_dir

from tests.economy import scalar_kernels
from tests.programs import run_program

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def output_of(script: str, *arguments: str, folder: Path, ranks: int = 1, width: int = 80) -> str:
    """What `script` prints on a terminal of `width` columns; an `AssertionError` with its last words if it fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(rank: int) -> CompletedProcess:
        own = folder / str(rank)
        own.mkdir()
        command = ["-m", __name__, str(EXAMPLES / script), *arguments]
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port, "COLUMNS": width}
        variables = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        return run_program(command, own, 300, **variables, **{name: str(value) for name, value in places.items()})

    with ThreadPoolExecutor(ranks) as pool:
        done = list(pool.map(run, range(ranks)))
    assert [one.returncode for one in done] == [0] * ranks, [one.stderr[-3000:] for one in done]
    return done[0].stdout


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = str(EXAMPLES)
    cache_dir()  # as the environment says; what the script leaves is the test's
    tempfile.tempdir = str(Path.cwd().parent)
    with scalar_kernels():
        runpy.run_path(sys.argv[0], run_name="__main__")
