# SPDX-License-Identifier: Apache-2.0
"""Start the demo's ranks on this machine through torchrun's launcher, and follow what they do.

Contract: `run_on_ranks` calls `done` with each case as soon as all ranks have finished it. If a rank fails, the cases
that are not finished get the reason. What the ranks print is kept off the terminal. Results come through pipes that
only this process and its ranks have: they are pickled, and nobody else can put a pickle there.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from farskip_compile.demo.overlap import OverlapCase, RankOverlap, compared
from farskip_compile.demo.ranks import RankCase, rank_main
from farskip_compile.demo.results import DemoCase, DemoComparison, over_ranks

Tell = Callable[[str], None]
Done = Callable[[DemoCase | DemoComparison], None]


def run_on_ranks(cases: Sequence[RankCase | OverlapCase], ranks: int, tell: Tell, done: Done) -> None:
    """Run `cases`, in this order, on `ranks` new processes; `tell` and `done` are called from another thread, too."""
    tell(f"starting {ranks} ranks")
    with tempfile.TemporaryDirectory(prefix="farskip-demo-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            run_id="farskip-demo",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=Std.ALL),
        )
        follower = Follower(ranks, tell, done)
        problem = "the ranks ended without a result"
        try:
            with _environment(), _signals(), follower.following():
                elastic_launch(config, rank_main)(list(cases), folder, follower.writers)
        except ChildFailedError as error:
            problem = _message(error)
        except SignalException as error:  # the launcher takes what a terminal sends, and stops the ranks
            if error.sigval is signal.SIGINT:
                raise KeyboardInterrupt from error
            raise
        for case in cases[follower.finished :]:
            kind = DemoComparison if isinstance(case, OverlapCase) else DemoCase
            done(kind(case.title, case.about, ranks, problem))


class Follower:
    """Reads what the ranks send, while the launcher blocks the main thread (it wants its signals)."""

    def __init__(self, ranks: int, tell: Tell, done: Done) -> None:
        self.tell, self.done = tell, done
        self.finished = 0
        pairs = [get_context("spawn").Pipe(duplex=False) for _ in range(ranks)]
        self.readers, self.writers = [reader for reader, _ in pairs], [writer for _, writer in pairs]
        self._results: list[list[DemoCase | RankOverlap]] = [[] for _ in pairs]

    @contextmanager
    def following(self) -> Iterator[None]:
        """Read until the block is over and all ranks are gone."""
        thread = threading.Thread(target=self._loop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            for writer in self.writers:
                writer.close()  # the last one: now every pipe has an end
            thread.join()

    def _loop(self) -> None:
        left = dict(zip(self.readers, self._results, strict=True))
        try:
            while left:
                for reader in wait(list(left)):
                    assert isinstance(reader, Connection)
                    try:
                        found = reader.recv()
                    except (EOFError, OSError):  # in the middle of a message, too
                        del left[reader]
                    else:
                        self._receive(found, left[reader])
        finally:
            for reader in self.readers:
                reader.close()  # a rank that writes to it ends, and does not wait

    def _receive(self, found: str | DemoCase | RankOverlap, results: list[DemoCase | RankOverlap]) -> None:
        if isinstance(found, str):
            self.tell(found)
            return
        results.append(found)
        if all(len(one) > self.finished for one in self._results):
            seen: list[Any] = [one[self.finished] for one in self._results]
            self.finished += 1
            self.done(compared(seen) if isinstance(seen[0], RankOverlap) else over_ranks(seen))


@contextmanager
def _environment() -> Iterator[None]:
    """One thread for each rank, gloo on the loopback interface, and no log of the launcher's own."""
    wanted = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "2", "TORCH_WARM_POOL": "0"}
    if sys.platform == "linux":
        wanted["GLOO_SOCKET_IFNAME"] = "lo"  # no name resolution of this host needed
    added = [name for name in wanted if name not in os.environ]
    loggers = [logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in added:
            del os.environ[name]


@contextmanager
def _signals() -> Iterator[None]:
    """The launcher takes signals for itself, and keeps them: what comes after it is to have them back."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
    before = {name: signal.getsignal(getattr(signal, name)) for name in names if hasattr(signal, name)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for name, handler in before.items():
                if handler is not None:  # one that Python did not install, which it can't put back
                    signal.signal(getattr(signal, name), handler)


def _message(error: ChildFailedError) -> str:
    """What the first failing rank raised, without its traceback."""
    rank, failure = error.get_first_failure()
    message: object = failure.message  # declared as a string, but a dictionary if the rank wrote an error file
    if isinstance(message, dict):
        message = message.get("message", message)
    return f"rank {rank} failed: {message}"
