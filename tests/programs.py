# SPDX-License-Identifier: Apache-2.0
"""Run the programs of a page as their commands say, without importing torch for each of them anew.

In:    a command of a page, and the folder in which it is given.
Out:   what it writes, and how it ends.
Never: lets two programs share a process, or one see what another has done.

Importing takes longer than what most programs of a page do. So each is the main program of a process forked from a
server that has imported torch and transformers, and nothing else; see `tests.distributed.ranks`.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch.multiprocessing


def run_program(command: Sequence[str], folder: Path, timeout: float, **variables: str) -> subprocess.CompletedProcess:
    """Run `python FILE ...` or `python -m MODULE ...` in `folder`, with these variables in its environment.

    Raises:
        TimeoutError: it took longer, and was ended.
    """
    context = torch.multiprocessing.get_context("forkserver")
    output, errors = folder / ".stdout", folder / ".stderr"
    environment = {**os.environ, **variables}
    process = context.Process(target=_be, args=(list(command), str(folder), environment, str(output), str(errors)))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{' '.join(command)} took more than {timeout} s")
    texts = [path.read_text() for path in (output, errors)]
    for path in (output, errors):
        path.unlink()
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


def _be(command: list[str], folder: str, environment: Mapping[str, str], *files: str) -> None:
    """Become the program."""
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    sys.path[0:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    first, *rest = command
    if first == "-m":
        module, *rest = rest
        sys.path[0:0] = [folder]
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.path[0:0] = [str(Path(folder, first).parent)]
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")
