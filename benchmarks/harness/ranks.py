# SPDX-License-Identifier: Apache-2.0
"""Start one process per rank, follow what they print, and return one result from each.

Contract: `run_ranks` returns only when no process that it started is left, after the end of all ranks, a failure, a
timeout or an exception in this process. The first rank that fails ends the others; the error has the last lines of each
rank that failed by itself.

    1. Start each rank in its own session, through `launch.py`, which ties it to this process and pins it. A call goes
       through a pipe to it, pickled: a file could be another's.
    2. One thread per rank reads its lines, another waits for its end. The main thread sleeps until one ends.
    3. On a failure: wait a moment for others that fail for the same reason, then kill every session.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import Failure, HarnessError, RankError, RankFailedError, RankTimeoutError

Target = Callable[..., Any] | Sequence[str]
Log = Callable[[int, str], None]
Place = tuple[tuple[str, ...], int | None]
"""Prefix of a rank's command, for example to enter a namespace; and the processor it may use, None: all."""
LAST_LINES = 25
GRACE = 1.0
"""Seconds that the other ranks have to fail by themselves after the first one."""


@dataclass(frozen=True)
class RankResult:
    """What one rank returned."""

    rank: int
    value: Any
    """What the function returned, or the command wrote into the file named by FARSKIP_RESULT; None: nothing."""
    network: str
    """The network it ran on, in words; says so if it was the loopback interface."""
    lines: tuple[str, ...]
    """The last lines that it printed."""


def cores_for(ranks: int, allowed: Collection[int]) -> list[int | None]:
    """One core per rank if there are enough; otherwise no pinning."""
    return list(sorted(allowed)[:ranks]) if len(allowed) >= ranks else [None] * ranks


def print_line(rank: int, line: str) -> None:
    """The default log: standard error, after the number of the rank."""
    print(f"[rank {rank}] {line}", file=sys.stderr, flush=True)


def run_ranks(
    target: Target,
    arguments: Callable[[int], Sequence[Any]],
    places: Sequence[Place],
    environment: Mapping[str, str],
    folder: Path,
    network: str,
    timeout: float,
    log: Log | None = print_line,
) -> list[RankResult]:
    """Run `target` once on each place; rank i runs on place i.

    Args:
        target: as in `Network.run`.
        arguments: of each rank, picklable.
        places: where the ranks run.
        environment: set for all ranks; RANK and FARSKIP_RESULT are added.
        folder: an existing folder for results, used by this call alone.
        network: the description that results carry.
        timeout: seconds from the start of the first rank to the end of the last.
        log: called with each line of each rank, from other threads; None: lines are dropped.

    Raises as `Network.run`, and `HarnessError` if other processes can't import `target`.
    """
    commands = [_command(target, arguments(rank), *place) for rank, place in enumerate(places)]
    ended: queue.SimpleQueue[_Rank] = queue.SimpleQueue()
    ranks: list[_Rank] = []
    deadline = time.monotonic() + timeout
    try:
        for rank, (command, sent) in enumerate(commands):
            variables = {**environment, "RANK": str(rank), "FARSKIP_RESULT": str(folder / f"{rank}.json")}
            ranks.append(_Rank(rank, command, sent, variables, log, ended))
        failures = _follow(ranks, ended, deadline, timeout)
    finally:
        for started in ranks:
            started.kill()
    if failures:
        raise failures
    values = [_value(rank, folder / f"{rank.rank}.json", owed=callable(target)) for rank in ranks]
    return [RankResult(r.rank, value, network, tuple(r.lines)) for r, value in zip(ranks, values, strict=True)]


class _Rank:
    """One process, the thread that reads its output, and the thread that waits for it."""

    def __init__(
        self,
        rank: int,
        command: Sequence[str],
        sent: bytes,
        env: Mapping[str, str],
        log: Log | None,
        ended: queue.SimpleQueue[_Rank],
    ) -> None:
        self.rank = rank
        self.lines: deque[str] = deque(maxlen=LAST_LINES)
        self._process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.PIPE if sent else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that whatever it starts can be killed with it
        )
        self._log = log
        self._ended = ended
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._reader.start()
        self._waiter.start()
        if sent:
            threading.Thread(target=self._send, args=(sent,), daemon=True).start()

    def _send(self, sent: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:  # it may have ended before it read
            pipe.buffer.write(sent)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            if self._log is not None:
                self._log(self.rank, line.rstrip("\n"))

    def _wait(self) -> None:
        # not reaped yet: its number must not be reused before `kill` has killed its session
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self._ended.put(self)

    def kill(self) -> None:
        """Kill it, if it still runs, and all that it started; then read the rest of its lines."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._waiter.join()
            self._process.wait()
        self._reader.join(GRACE)  # longer only if a process that left the session holds the pipe

    def bad_end(self) -> str | None:
        """How a rank that has ended failed; None: it did not."""
        self.kill()
        status = self._process.returncode
        if status == 0:
            return None
        if status > 0:
            return f"exit status {status}"
        names = {number.value: number.name for number in signal.Signals}
        return f"killed by {names.get(-status, f'signal {-status}')}"

    def failure(self, how: str) -> Failure:
        """The same with its lines."""
        return Failure(self.rank, how, tuple(self.lines))


def _follow(
    ranks: Sequence[_Rank], ended: queue.SimpleQueue[_Rank], deadline: float, timeout: float
) -> RankError | None:
    """Wait until all ranks have ended, one has failed, or the time is up; None: all succeeded."""
    running, failures = list(ranks), list[Failure]()
    while running:
        try:
            rank = ended.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        running.remove(rank)
        if how := rank.bad_end():
            deadline = deadline if failures else time.monotonic() + GRACE
            failures.append(rank.failure(how))
    if failures:
        return RankFailedError(failures)
    if running:
        for rank in running:
            rank.kill()
        return RankTimeoutError([rank.failure(f"still running after {timeout:g} s") for rank in running])
    return None


def _command(
    target: Target, arguments: Sequence[Any], prefix: tuple[str, ...], core: int | None
) -> tuple[list[str], bytes]:
    """`launch.py` with a command, or with what to send it: the call."""
    launcher = (sys.executable, "-P", str(Path(__file__).with_name("launch.py")))
    start = [*prefix, *launcher, str(os.getpid()), "-" if core is None else str(core)]
    if not callable(target):
        return [*start, "exec", *target, *map(str, arguments)], b""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "")
    if module in (None, "__main__") or "." in name or getattr(sys.modules.get(module), name, None) is not target:
        raise HarnessError(
            f"ranks can't import {target!r}",
            way_out="pass a function at the top level of a module other than the script that is being run",
        )
    return [*start, "call"], pickle.dumps((sys.path, module, name, pickle.dumps(tuple(arguments))))


def _value(rank: _Rank, file: Path, owed: bool) -> Any:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        if owed:
            raise RankFailedError([rank.failure("no result, but exit status 0")]) from None
        return None
    except ValueError as error:
        raise RankFailedError([rank.failure(f"a result that is not JSON: {error}")]) from None
