"""Start the demo's ranks on this machine through torchrun's launcher, and follow what they do.

Contract: `run_on_ranks` calls `done` with each case as soon as all ranks have finished it. If a rank fails, the cases
that are not finished get the reason. What the ranks print is kept off the terminal.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from farskip_compile.demo.overlap import OverlapCase, RankOverlap, compared
from farskip_compile.demo.ranks import PROGRESS, RankCase, rank_main, result_file
from farskip_compile.demo.results import Case, Comparison, over_ranks

Tell = Callable[[str], None]
Done = Callable[[Case | Comparison], None]


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
        follower = _Follower(Path(folder), len(cases), ranks, tell, done)
        problem = "the ranks ended without a result"
        try:
            with _environment(), follower.following():
                elastic_launch(config, rank_main)(list(cases), folder)
        except ChildFailedError as error:
            problem = _message(error)
        for case in cases[follower.finished :]:
            kind = Comparison if isinstance(case, OverlapCase) else Case
            done(kind(case.title, case.about, ranks, problem))


class _Follower:
    """Reads what the ranks leave in the folder, while the launcher blocks the main thread (it wants its signals)."""

    def __init__(self, folder: Path, cases: int, ranks: int, tell: Tell, done: Done) -> None:
        self.folder, self.cases, self.ranks, self.tell, self.done = folder, cases, ranks, tell, done
        self.finished = 0
        self._lines = 0

    @contextmanager
    def following(self) -> Iterator[None]:
        """Look at the folder repeatedly during the block, and once after it."""
        over = threading.Event()

        def loop() -> None:
            while not over.wait(0.2):
                self.look()

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.look()

    def look(self) -> None:
        """Pass on what is new."""
        while self.finished < self.cases:
            files = [result_file(self.folder, self.finished, rank) for rank in range(self.ranks)]
            if not all(file.exists() for file in files):
                break
            self.finished += 1
            seen = [pickle.loads(file.read_bytes()) for file in files]
            self.done(compared(seen) if isinstance(seen[0], RankOverlap) else over_ranks(seen))
        progress = self.folder / PROGRESS
        lines = progress.read_text().splitlines() if progress.exists() else []
        if len(lines) > self._lines:
            self._lines = len(lines)
            self.tell(lines[-1])


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


def _message(error: ChildFailedError) -> str:
    """What the first failing rank raised, without its traceback."""
    rank, failure = error.get_first_failure()
    message: object = failure.message  # declared as a string, but a dictionary if the rank wrote an error file
    if isinstance(message, dict):
        message = message.get("message", message)
    return f"rank {rank} failed: {message}"
