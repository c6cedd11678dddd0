# SPDX-License-Identifier: Apache-2.0
"""Run iproute2 commands, each with a timeout, and query the state.

Contract: `execute` raises with the command and its error output; `attempt` never raises for a command that fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable

from harness.commands import INTERFACE, Command
from harness.errors import NetworkUnavailableError

COMMAND_TIMEOUT = 20.0
"""Seconds; a command takes milliseconds."""


def why_not() -> str | None:
    """What is missing for network namespaces, as far as can be known without trying; None: nothing."""
    if not sys.platform.startswith("linux"):
        return f"network namespaces need Linux, and this is {sys.platform}"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        return f"iproute2 is not installed: no {' and no '.join(missing)} on the path"
    if os.geteuid() != 0:
        return "network namespaces need root"
    return None


def execute(commands: Iterable[Command]) -> None:
    """Run one after another; `NetworkUnavailableError` names the first that fails."""
    for command in commands:
        status, _, message = attempt(command)
        if status != 0:
            raise NetworkUnavailableError(f"`{' '.join(command)}` failed: {message.strip() or f'exit status {status}'}")


def attempt(command: Command) -> tuple[int, str, str]:
    """Exit status, output and error output of one command."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, "", f"no answer within {COMMAND_TIMEOUT:g} s"
    except OSError as error:
        return -1, "", str(error)
    return done.returncode, done.stdout, done.stderr


def namespaces() -> list[str]:
    return [line.split()[0] for line in attempt(("ip", "netns", "list"))[1].splitlines() if line.strip()]


def processes(namespace: str) -> list[int]:
    """Ids of the processes in a namespace; empty if it does not exist."""
    return [int(word) for word in attempt(("ip", "netns", "pids", namespace))[1].split()]


def sent_bytes(namespace: str) -> int:
    """Bytes that a host has sent since its interface was created, headers included."""
    _, output, _ = attempt(("ip", "-n", namespace, "-j", "-s", "link", "show", "dev", INTERFACE))
    return int(json.loads(output)[0]["stats64"]["tx"]["bytes"])
