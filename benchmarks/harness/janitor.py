# SPDX-License-Identifier: Apache-2.0
"""Tear networks down, whatever happened to the process that owned them.

Every network has an owner, which holds a lock on a file while it lives: the kernel releases it even on `kill -9`.
`demolish` is called by the first of these:
    1. the owner leaves its `with` block, at its end or by an exception or a signal;
    2. its watchman, a small process that waits for the owner's end of a pipe to close, finds the lock released;
    3. the next run sweeps up whatever has one of our names and no owner (after a power failure, say).

`demolish` kills what runs in the network's namespaces, removes the interfaces by name, then the namespaces, and checks
whether anything is left.

Contract: a network whose owner lives is never touched. The watchman (`watch`) imports only the standard library and the
harness.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from harness import iproute
from harness.commands import Names, teardown, token_of
from harness.errors import TeardownError

FOLDER = Path("/run/farskip-net")
"""One folder per network, named by its token, with its lock and results; next to iproute2's own /run/netns."""
MOST_HOSTS = 4
PATIENCE = 30.0
"""Seconds to wait for another process that is building or removing a network."""


class Claim:
    """A unique token, its folder, and a watchman; held until `release`."""

    def __init__(self) -> None:
        with _one_at_a_time():
            tokens = (f"{os.getpid()}-{number}" for number in itertools.count())
            self.token = next(token for token in tokens if not (FOLDER / token).exists())
            self.folder = FOLDER / self.token
            self.folder.mkdir()
            self._lock = (self.folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        program = "import sys; from harness.janitor import watch; watch(sys.argv[1])"
        self._watchman = subprocess.Popen(
            [sys.executable, "-S", "-c", program, self.token],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # out of reach of the terminal's Ctrl-C and of a kill of our process group
        )

    def release(self) -> None:
        """Demolish the network of this token and release the token; `TeardownError` if something is left."""
        try:
            with _one_at_a_time():
                demolish(self.token)
        finally:
            self._lock.close()
            assert self._watchman.stdin is not None
            self._watchman.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._watchman.wait(PATIENCE)


def sweep() -> list[str]:
    """Demolish every network whose owner is dead; returns their tokens."""
    tokens = {token for name in iproute.namespaces() if (token := token_of(name))}
    tokens |= {entry.name for entry in FOLDER.glob("*-*") if entry.is_dir()}
    swept = []
    with _one_at_a_time():
        for token in sorted(tokens):
            if not _owned(token):
                demolish(token)
                swept.append(token)
    return swept


def demolish(token: str) -> None:
    """Remove all that has this token in its name, and the folder; `TeardownError` if something is left."""
    names = Names(token, MOST_HOSTS)
    for _ in range(50):  # a process may start others until the moment it dies
        running = [process for name in leftovers(token) for process in iproute.processes(name)]
        if not running:
            break
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    if leftovers(token):
        said = [(command, *iproute.attempt(command)) for command in teardown(names)]
        if left := leftovers(token):
            failed = [f"`{' '.join(command)}`: {error.strip()}" for command, status, _, error in said if status]
            raise TeardownError(
                f"still there: {', '.join(left)}\n" + "\n".join(failed),
                way_out="remove them with `ip netns delete NAME`",
            )
    shutil.rmtree(FOLDER / token, ignore_errors=True)


def leftovers(token: str) -> list[str]:
    """The namespaces of a token that exist."""
    return [name for name in iproute.namespaces() if token_of(name) == token]


def _owned(token: str) -> bool:
    try:
        with (FOLDER / token / "lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Claims, sweeps and demolitions are mutually exclusive across processes."""
    FOLDER.mkdir(exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    with (FOLDER / "lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TeardownError(f"another process held {FOLDER / 'lock'} for {PATIENCE:g} s") from None
                time.sleep(0.05)
        yield


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP wait until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def watch(token: str) -> None:
    """Wait for the end of the owner, then remove what it left."""
    sys.stdin.buffer.read()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:  # a dying process may lose the pipe before the lock
        with _one_at_a_time():
            if not _owned(token):
                return demolish(token)
        time.sleep(0.05)
