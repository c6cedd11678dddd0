# SPDX-License-Identifier: Apache-2.0
"""Run ranks in which something goes wrong, and tell how each of them ended.

In:    scenes: functions at the top level of a module, called one after the other in every rank, in step.
Out:   for each scene the outcome of each rank: what it returned or raised, or the signal that ended it, and when.
Never: sleeps to hit a moment. A rank that is to be hit at a certain place calls `reached(name)` there and stands still;
       this process then does with it what was asked (`hits`), while it stands there.

Each rank is a process of its own, forked from a server that has imported everything already (see `distributed.ranks`).
No rank begins a scene before all have ended the one before, or leaves, so that nobody's error is that of a connection
which the other one closed by leaving. Seconds are counted by this process: from the first signal sent, or else from the
first rank that ended, to the moment at which it hears of the rank's end.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from tests.economy import collect_rarely

LIMIT = 240.0
"""Seconds for one scene; a rank that takes longer is killed, and its outcome is `did not end`."""
LONG = 600.0
"""Timeout of the process group where no rank is meant to wait for it: longer than `LIMIT`."""
FINE = "finished"
HUNG = "did not end"

Scene = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True)
class Outcome:
    """How a rank came out of a scene."""

    rank: int
    ended: str
    """`FINE`, the name of the exception's class, `killed by SIGKILL`, or `HUNG`."""
    text: str = ""
    """Of the exception."""
    value: Any = None
    """What the scene returned."""
    where: str = ""
    """Traceback of the exception."""
    seconds: float = 0.0
    bases: tuple[str, ...] = ()
    """Names of all classes of the exception."""

    def __str__(self) -> str:
        return f"rank {self.rank} {self.ended} after {self.seconds:.2f} s: {self.text}\n{self.where}"


@dataclass
class _Rank:
    process: Any
    pipe: Connection
    scene: int = 0
    alive: bool = True
    outcomes: dict[int, tuple[Outcome, float]] = field(default_factory=dict)


_pipe: Connection | None = None


def reached(name: str) -> None:
    """Wait here until a signal ends this process or raises (SIGINT: `KeyboardInterrupt`)."""
    assert _pipe is not None
    _pipe.send(("reached", name))
    while True:  # `signal.pause` would wait for ever if the signal came just before it
        time.sleep(0.02)


def run_scenes(
    scenes: Sequence[Scene],
    ranks: int = 2,
    *,
    timeout: float = LONG,
    hits: Mapping[str, int] | None = None,
    environment: Mapping[str, str] | None = None,
    tcp: bool = False,
) -> list[list[Outcome]]:
    """The outcomes of all ranks, for each scene.

    Args:
        scenes: functions and their arguments; each is called as `fn(rank, *args)` on every rank that is still there.
        ranks: number of processes.
        timeout: of the process group, seconds.
        hits: signal to send to a rank when it has reached the place of this name.
        environment: variables that the ranks get.
        tcp: rank 0 keeps the store. Else it is a file, which stays when a rank dies.
    """
    context = torch.multiprocessing.get_context("forkserver")
    found: list[_Rank] = []
    hit_at: list[list[float]] = [[] for _ in scenes]
    with tempfile.TemporaryDirectory() as folder:
        store = f"tcp://127.0.0.1:{_free_port()}" if tcp else f"file://{folder}/store"
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            args = (rank, ranks, scenes, store, timeout, dict(environment or {}), theirs)
            process = context.Process(target=_main, args=args, daemon=True)
            process.start()
            theirs.close()
            found.append(_Rank(process, ours))
        try:
            for scene, times in enumerate(hit_at):
                _see(found, scene, hits or {}, times)
                for one in found:
                    if one.alive:
                        one.pipe.send("go on")
        finally:
            for one in found:
                one.pipe.close()
                if not one.alive:
                    one.process.kill()
            for one in found:
                one.process.join(5.0)
                if one.process.is_alive():
                    one.process.kill()
                    one.process.join()
    ended = [[one.outcomes[scene] for one in found if scene in one.outcomes] for scene in range(len(scenes))]
    return [_timed(outcomes, times) for outcomes, times in zip(ended, hit_at, strict=True)]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _see(ranks: list[_Rank], scene: int, hits: Mapping[str, int], hit_at: list[float]) -> None:
    """Until every rank has ended `scene`, or this process is tired of waiting."""
    deadline = time.monotonic() + LIMIT
    while waiting := [one for one in ranks if one.alive and scene not in one.outcomes]:
        sources = {one.pipe: one for one in waiting} | {one.process.sentinel: one for one in waiting}
        ready = wait(list(sources), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            for one in waiting:
                one.process.kill()
                one.alive = False
                one.outcomes[scene] = Outcome(ranks.index(one), HUNG), time.monotonic()
            return
        for source in ready:
            one = sources[source]
            if one.alive and scene not in one.outcomes:
                _hear(one, ranks.index(one), scene, hits, hit_at)


def _hear(one: _Rank, rank: int, scene: int, hits: Mapping[str, int], hit_at: list[float]) -> None:
    try:
        kind, what = one.pipe.recv() if one.pipe.poll() else ("gone", None)
    except (EOFError, ConnectionError):
        kind, what = "gone", None
    now = time.monotonic()
    if kind == "ended":
        one.outcomes[scene] = pickle.loads(what), now
    elif kind == "reached":
        hit_at.append(now)
        os.kill(one.process.pid, hits[what])
        if hits[what] == signal.SIGSTOP:  # it says nothing more
            one.alive = False
            one.outcomes[scene] = Outcome(rank, "stopped by SIGSTOP"), now
    else:
        one.process.join()
        code = one.process.exitcode
        name = f"killed by {signal.Signals(-code).name}" if code < 0 else f"left with status {code}"
        one.alive = False
        one.outcomes[scene] = Outcome(rank, name), now


def _timed(outcomes: list[tuple[Outcome, float]], hit_at: list[float]) -> list[Outcome]:
    start = min([*hit_at, *(at for _, at in outcomes)], default=0.0)
    return [replace(outcome, seconds=max(0.0, at - start)) for outcome, at in outcomes]


def _main(
    rank: int,
    size: int,
    scenes: Sequence[Scene],
    store: str,
    timeout: float,
    environment: dict[str, str],
    pipe: Connection,
) -> None:
    global _pipe
    _pipe = pipe
    signal.signal(signal.SIGINT, signal.default_int_handler)
    collect_rarely()
    torch.set_num_threads(1)
    os.environ.update(environment)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    for fn, args in scenes:
        pipe.send(("ended", pickle.dumps(_outcome(rank, fn, args))))
        pipe.recv()
    os._exit(0)  # a broken process group may be slow to go


def _outcome(rank: int, fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
    try:
        return Outcome(rank, FINE, value=fn(rank, *args))
    except BaseException as error:
        bases = tuple(base.__name__ for base in type(error).__mro__)
        return Outcome(rank, type(error).__name__, str(error), where=traceback.format_exc(), bases=bases)
