# SPDX-License-Identifier: Apache-2.0
"""Entry point of a rank's process: tie it to its parent, pin it, then become the program or call the function.

    python -P launch.py PARENT CORE exec COMMAND...        become COMMAND
    python -P launch.py PARENT CORE call                   call what `ranks.py` pickled into standard input

Contract: the process is killed as soon as its parent dies, however that happens. A called function's complete result is
written as JSON to the file named by FARSKIP_RESULT. If the function raises, the process ends with status 1 right after
the traceback, without cleanup by libraries that may wait for other ranks.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pickle
import signal
import sys
import traceback
from pathlib import Path

PR_SET_PDEATHSIG = 1


def tie_to(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; end if it already has."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def call() -> None:
    """Call the function that the parent sent through the pipe, which nobody else can write to; leave its result."""
    try:
        path, module, name, arguments = pickle.load(sys.stdin.buffer)
        sys.path[:] = path
        function = getattr(importlib.import_module(module), name)
        result = json.dumps(function(*pickle.loads(arguments)))
        target = Path(os.environ["FARSKIP_RESULT"])
        part = target.with_name(f"{target.name}.part")
        part.write_text(result)
        part.replace(target)
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def main() -> None:
    parent, core, how, *rest = sys.argv[1:]
    tie_to(int(parent))
    if core != "-":
        os.sched_setaffinity(0, {int(core)})
    if how == "exec":
        os.execvp(rest[0], rest)
    call()


if __name__ == "__main__":
    main()
