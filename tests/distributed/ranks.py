# SPDX-License-Identifier: Apache-2.0
"""Run one function on several gloo ranks of this machine, and bring their results or their errors back."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.multiprocessing.spawn import ProcessException

from farskip_compile.compiler.ranks.process_group import leaving_process_group
from tests.economy import collect_rarely

PRELOADED = [
    "torch._inductor.compile_fx", "torch._inductor.fx_passes.fuse_attention", "torch._dynamo.backends.inductor",
    "farskip_compile.compiler.backend", "farskip_compile.models", "farskip_compile.testing", "pytest", "hypothesis",
    "transformers.modeling_utils", "tests.distributed.warm",
]  # fmt: skip
"""What ranks that are forked have imported already: it takes longer than most of what they are asked to do. A package
that is not there is left out."""


class RankError(AssertionError):
    """A rank raised; the message holds the traceback of every rank that did."""


GRACE_SECONDS = 15.0
"""Between the timeout of the group, at which ranks raise errors of their own, and the end of all ranks."""


def run_ranks(
    fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0, fresh: bool = False
) -> list[Any]:
    """Call `fn(rank, world_size, *args)` on every rank, and return what the ranks returned.

    Args:
        fn: a function at the top level of a module (the ranks import it by name).
        world_size: number of processes.
        *args: passed on; they and the results must be picklable.
        timeout: of the process group, in seconds; a little later all ranks are ended and `TimeoutError` is raised.
        fresh: start interpreters anew, each with a hash seed of its own and with this process's environment as it is
            now, instead of forking a server that this process starts once.
    """
    method = "spawn" if fresh else "forkserver"
    torch.multiprocessing.get_context(method).set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.start_processes(
            _rank_main,
            (fn, world_size, args, folder, timeout),
            nprocs=world_size,
            join=False,
            start_method=method,
        )
        deadline = time.monotonic() + timeout + GRACE_SECONDS
        try:
            while not context.join(timeout=1.0):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{fn.__name__} on {world_size} ranks took more than {timeout} s")
        except ProcessException as error:
            raise RankError(_errors(Path(folder)) or str(error)) from None
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [pickle.loads((Path(folder) / f"{rank}.result").read_bytes()) for rank in range(world_size)]


def _errors(folder: Path) -> str:
    """The tracebacks that the ranks left behind, earliest first: later ones are often mere consequences."""
    reports = sorted(folder.glob("*.error"), key=lambda file: file.stat().st_mtime_ns)
    return "\n".join(f"rank {file.stem}:\n{file.read_text()}" for file in reports)


def _rank_main(
    rank: int, fn: Callable[..., Any], world_size: int, args: tuple[Any, ...], folder: str, timeout: float
) -> None:
    collect_rarely()
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # no name resolution of this host needed
    errors = Path(folder) / f"{rank}.error"
    with _reported(errors):
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
    with leaving_process_group(), _reported(errors):  # destroying a group waits for its collectives
        result = fn(rank, world_size, *args)
        (Path(folder) / f"{rank}.result").write_bytes(pickle.dumps(result))


@contextmanager
def _reported(file: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        file.write_text(traceback.format_exc())
        raise
