# SPDX-License-Identifier: Apache-2.0
"""Runs the ranks of one group of cells, and answers what they ask: to change the network, and to take results.

Contract: `run_group` calls back with each cell as soon as it is finished; cells finished before a rank fails are kept.
One rank asks, one question after another; `desk` answers in order. Questions and answers are plain data. They meet at a
Unix socket in a folder, because network namespaces share the file system and nothing else. What the desk can't answer
is an error on both ends.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

from common import processor
from harness import Network

from overlap_bench.ask import SOCKET
from overlap_bench.cells import Cell, Group
from overlap_bench.results import Result, summarise
from overlap_bench.settings import describe

ENVIRONMENT = {
    "KINETO_LOG_LEVEL": "99",  # the profiler's own log
    # the allocator keeps large buffers, as those of accelerators do: otherwise every step waits for new pages
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(10**11),
    "MALLOC_TOP_PAD_": str(2**27),
}
"""Of every rank, the same for all variants."""
TIMEOUT = 3600.0
"""Seconds for a group."""


def run_group(
    network: Network,
    group: Group,
    ratios: Sequence[float],
    settings: Mapping[str, Any],
    *,
    options: Mapping[str, Any],
    profile: dict[str, Any] | None,
    traces: Path | None,
    finished: Callable[[Result], None],
) -> dict[str, Any]:
    """Measure the cells of `group` at these `ratios`, with `settings_of` it; returns the profile of the compute.

    Args:
        network: with the group's number of hosts, inside its `with` block.
        options: further ones of our backend.
        profile: of this machine's compute, if known.
        traces: folder for Chrome traces; None: they are not kept.
        finished: called with each cell, from another thread.
    """
    from overlap_bench import ranks  # imports torch, which the tables do not need

    cores = "one core for each rank"
    if network.cores[0] is None:
        cores = f"{group.hosts} ranks SHARE the cores of this machine"

    def answer(question: dict[str, Any]) -> Any:
        if "rate" in question:
            network.set_rate(question["rate"], large_segments=question.get("large_segments", False))
            return {"rate": network.link.rate if network.is_network else None, "text": network.describe()}
        handed = question["cell"]
        words = {"about": describe(group, settings), "when": time.strftime("%Y-%m-%d %H:%M"), "machine": processor()}
        cell = Cell(group, handed["ratio"])
        return finished(summarise(cell, handed, is_network=network.is_network, cores=cores, **words))

    with tempfile.TemporaryDirectory(prefix="mailbox-") as folder, desk(Path(folder), answer):
        results = network.run(
            ranks.measure_group,
            lambda rank: (rank, settings, ratios, options, profile, folder, None if traces is None else str(traces)),
            env=ENVIRONMENT,
            timeout=TIMEOUT,
        )
    return results[0].value  # type: ignore[no-any-return]


@contextlib.contextmanager
def desk(folder: Path, handler: Callable[[Any], Any]) -> Iterator[None]:
    """Answer questions that arrive in `folder`, an empty one, in a thread.

    What the handler raises is raised at the end of the block, in place of the errors of the ranks that miss an answer.
    """
    path = str(folder / SOCKET)
    problems: list[Exception] = []

    def answer(question: Any) -> tuple[Any, str | None]:
        try:
            return handler(question), None
        except Exception as error:
            problems.append(error)
            return None, f"{type(error).__name__}: {error}"

    def serve() -> None:
        while True:
            with contextlib.suppress(EOFError, OSError), listener.accept() as rank:
                if (question := rank.recv()) is None:
                    return
                rank.send(answer(question))

    with Listener(path, "AF_UNIX") as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        except Exception:
            if not problems:
                raise
        finally:
            with contextlib.suppress(OSError), Client(path, "AF_UNIX") as end:
                end.send(None)
            thread.join()
    if problems:
        raise problems[-1]
