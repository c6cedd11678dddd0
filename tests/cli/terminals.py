# SPDX-License-Identifier: Apache-2.0
"""Programs run as a user runs them: in a terminal of their own, or with pipes, and stopped by Ctrl-C.

Nothing of the package is imported here.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOURS = re.compile(r"\x1b\[[0-9;]*\b(3[0-7]|38;[25];|4[0-7]|9[0-7])")
"""A foreground or a background that a program chose; bold and dim are none."""
FARSKIP = (sys.executable, "-m", "farskip_compile")
HIDDEN = (
    *("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TYPER_USE_RICH", "COLUMNS", "TERMINAL_WIDTH", "RANK"),
    *("TQDM_DISABLE", "PYTHONUNBUFFERED"),  # unbuffered, Python takes a pipe that closes for one that was full
)
"""Variables of the place where the tests run that decide what output looks like."""
SECONDS = 120
CTRL_C = b"\x03"


def environment(**more: str) -> dict[str, str]:
    """This one, so that a new process finds the same package, without what decides how output looks."""
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return {**{name: value for name, value in os.environ.items() if name not in HIDDEN}, **path, **more}


@dataclass(frozen=True)
class Shown:
    """What a terminal got, with all codes, and the exit status."""

    raw: str
    status: int

    @property
    def text(self) -> str:
        """Without codes; what was drawn over is still there."""
        return ESCAPES.sub("", self.raw).replace("\r\n", "\n")


def in_terminal(
    command: Sequence[str],
    *,
    columns: int = 80,
    stdout: int | None = None,
    stop_at: str = "",
    env: Mapping[str, str] | None = None,
) -> Shown:
    """Run `command` in a new terminal, as its foreground process group.

    Args:
        command: the program and its arguments.
        columns: how wide the terminal is.
        stdout: a descriptor that takes its stdout; None: the terminal.
        stop_at: text upon which Ctrl-C is typed.
        env: instead of `environment(TERM="xterm-256color")`.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))

    def lead() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell lets what it starts with & ignore it
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        preexec_fn=lead,
        env=dict(env if env is not None else environment(TERM="xterm-256color")),
    )
    os.close(theirs)
    seen, typed, end = b"", not stop_at, time.monotonic() + SECONDS
    before = 0
    try:
        while time.monotonic() < end:
            if not select.select([ours], [], [], 5.0)[0]:
                # Python misses a signal that arrives just before it waits; a second one would interrupt the end
                if stop_at and typed and not seen[before:].replace(b"^C", b"").strip():
                    os.write(ours, CTRL_C)
                continue
            try:
                part = os.read(ours, 65536)
            except OSError:  # the last one has closed it
                break
            if not part:
                break
            seen += part
            if not typed and stop_at in ESCAPES.sub("", seen.decode(errors="replace")):
                os.write(ours, CTRL_C)
                typed, before = True, len(seen)
        status = process.wait(max(1.0, end - time.monotonic()))
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return Shown(seen.decode(errors="replace"), status)


def with_pipes(
    command: Sequence[str], *, stop_at: str = "", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `command` with pipes; send SIGINT once stderr or stdout, which then are one, has shown `stop_at`."""
    env = dict(env if env is not None else environment())
    if not stop_at:
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=SECONDS, check=False)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # also where CI ignores it
    )
    seen = ""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            seen += line
            if stop_at in line:
                process.send_signal(signal.SIGINT)
        process.wait(SECONDS)
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(command, process.returncode, seen, "")


def read_a_line_and_leave(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> tuple[str, str, int]:
    """`command | head -1`: the line, what is on stderr, and the exit status of the command."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(env if env is not None else environment()),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        return line, errors, process.wait(SECONDS)
    finally:
        process.kill()
        process.wait()
