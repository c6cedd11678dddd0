# SPDX-License-Identifier: Apache-2.0
"""A network of 2 to 4 hosts on this machine, with an enforced rate, and one process on each host.

    with Network(hosts=2, rate="400mbit") as network:
        results = network.run(function_of_a_module, args=(1, 2), timeout=60)

Contract: inside the `with` block there is either a network (`is_network`), or, where namespaces are not available, this
machine's loopback interface, whose every result is labelled "loopback, not a network". After the block nothing of it is
left: see `janitor.py`.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

from harness import commands, iproute, janitor
from harness.errors import HarnessError, NetworkUnavailableError, QuantityError
from harness.ranks import Log, Place, RankResult, Target, cores_for, print_line, run_ranks

LOOPBACK = "loopback, not a network"
FIRST_PORT = 29500
LOOPBACK_INTERFACE = {"linux": "lo", "darwin": "lo0"}


class Network:
    """Hosts connected by cables of equal rate to one switch.

    Args:
        hosts: 2 to 4.
        rate: of each cable in each direction, like "400mbit", or bits per second; None: no limit.
        delay: from a host to the switch, like "500us"; needs netem in the kernel; `describe` says if it is missing.
        require: raise `NetworkUnavailableError` where namespaces are not available, instead of using the loopback
            interface.
        pin: give each rank one core, if there are enough.
        log: called with each line of each rank; None: lines are dropped.

    Raises:
        QuantityError: a number out of range.
    """

    def __init__(
        self,
        hosts: int = 2,
        rate: str | int | None = "400mbit",
        *,
        delay: str | None = None,
        require: bool = False,
        pin: bool = True,
        log: Log | None = print_line,
    ) -> None:
        if not 2 <= hosts <= janitor.MOST_HOSTS:
            raise QuantityError(f"a network has 2 to {janitor.MOST_HOSTS} hosts, not {hosts}")
        self.hosts = hosts
        self.link = commands.Link(_rate(rate), None if delay is None else commands.parse_delay(delay))
        self.problem: str | None = None
        """Why this is the loopback interface and not a network."""
        self.delay_problem: str | None = None
        """Why packets are not delayed although they should be."""
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()  # else it can't be known or set
        self.cores = cores_for(hosts, allowed) if pin else [None] * hosts
        self._require = require
        self._log = log
        self._claim: janitor.Claim | None = None
        self._names: commands.Names | None = None
        self._signals = _Signals()
        self._runs = itertools.count()

    def __enter__(self) -> Self:
        self._signals.install()
        try:
            self.problem = iproute.why_not() or self._build()
            if self.problem is not None and self._require:
                raise NetworkUnavailableError(
                    f"no network: {self.problem}", way_out="run as root, with iproute2 and the capability NET_ADMIN"
                )
        except BaseException:
            self._leave()
            raise
        if self.problem is not None:
            print(f"{LOOPBACK}: {self.problem}", file=sys.stderr, flush=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._leave()

    def _build(self) -> str | None:
        """Make the network; returns what went wrong, with nothing left of it, or None."""
        janitor.sweep()
        with janitor.signals_held_back():
            self._claim = janitor.Claim()
        names = commands.Names(self._claim.token, self.hosts)
        try:
            iproute.execute(commands.setup(names, self.link))
        except NetworkUnavailableError as error:
            self._demolish()
            return error.reason
        for command in commands.tune(names):
            iproute.attempt(command)
        self._names = names
        self._delay()
        return None

    def _delay(self) -> None:
        assert self._names is not None
        try:
            iproute.execute(commands.delay(self._names, self.link))
        except NetworkUnavailableError as error:
            self.delay_problem = error.reason
            self.link = replace(self.link, delay=None)
            print(f"no delay: {error.reason}", file=sys.stderr, flush=True)

    def _leave(self) -> None:
        with janitor.signals_held_back():
            try:
                self._demolish()
            finally:
                self._signals.restore()

    def _demolish(self) -> None:
        with janitor.signals_held_back():
            claim, self._claim, self._names = self._claim, None, None
            if claim is not None:
                claim.release()

    @property
    def is_network(self) -> bool:
        """Whether the hosts have their own links, instead of the loopback interface."""
        return self._names is not None

    @property
    def addresses(self) -> list[str]:
        """Of the hosts, by rank."""
        return ["127.0.0.1" if self._names is None else self._names.address(index) for index in range(self.hosts)]

    def describe(self) -> str:
        """One line that belongs to every result."""
        if not self.is_network:
            return LOOPBACK
        limit = f"{commands.format_rate(self.link.rate)} up and down each" if self.link.rate else "links without limit"
        parts = [f"{self.hosts} hosts (network namespaces)", limit]
        if self.link.segment != commands.SEGMENT:
            parts.append(f"segments of {self.link.segment >> 10} KiB")
        if self.link.delay is not None:
            parts.append(f"{1e3 * self.link.delay:g} ms delay")
        if self.delay_problem is not None:
            parts.append("no delay: not supported here")
        return ", ".join(parts)

    def set_rate(self, rate: str | int | None, *, large_segments: bool = False) -> None:
        """Change the rate; without effect on the loopback interface.

        Args:
            rate: of each cable in each direction.
            large_segments: TCP hands 256 KiB instead of 64 to the link at once, where the kernel supports it: less
                processor time, but as much passes at once after every pause. For messages of many segments.

        Raises:
            QuantityError: not a rate, or out of range.
            NetworkUnavailableError: the kernel refuses.
        """
        segment = commands.LARGE_SEGMENT if large_segments else commands.SEGMENT
        wanted = replace(self.link, rate=_rate(rate), segment=segment)
        if self._names is not None and wanted.segment != self.link.segment:
            done = all(iproute.attempt(command)[0] == 0 for command in commands.segments(self._names, wanted))
            if not done:  # an older kernel
                wanted = replace(wanted, segment=commands.SEGMENT)
                for command in commands.segments(self._names, wanted):
                    iproute.attempt(command)
        self.link = wanted
        if self._names is not None:
            iproute.execute(commands.limit(self._names, self.link))
            iproute.execute(commands.delay(self._names, self.link))

    def sent_bytes(self) -> list[int] | None:
        """Bytes that each host has sent so far, headers included; None on the loopback interface."""
        if self._names is None:
            return None
        return [iproute.sent_bytes(self._names.host(index)) for index in range(self.hosts)]

    def run(
        self,
        target: Target,
        args: Sequence[Any] | Callable[[int], Sequence[Any]] = (),
        *,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> list[RankResult]:
        """Run one process on each host; results by rank.

        The environment is this process's, plus RANK, LOCAL_RANK (0), WORLD_SIZE, MASTER_ADDR, MASTER_PORT,
        OMP_NUM_THREADS=1, GLOO_SOCKET_IFNAME, FARSKIP_NETWORK (the description) and FARSKIP_RESULT (a file that a
        command may write JSON into).

        Args:
            target: a function at the top level of an importable module that returns JSON-compatible data; or the
                beginning of a command.
            args: of the function, or the rest of the command: the same on all ranks, or a function of the rank.
            env: further variables, which override the others.
            timeout: seconds for everything.

        Raises:
            RankFailedError: a rank failed; the others were killed.
            RankTimeoutError: not all ranks ended in time; they were killed.
        """
        if not self._signals.installed:
            raise HarnessError("a network runs processes only inside its `with` block")
        arguments = args if callable(args) else lambda rank: args
        names = self._names
        if names is None:
            places: list[Place] = [((), core) for core in self.cores]
            port, interface = _free_port(), LOOPBACK_INTERFACE.get(sys.platform)
        else:
            enter = ("ip", "netns", "exec")
            places = [((*enter, names.host(index)), core) for index, core in enumerate(self.cores)]
            port, interface = FIRST_PORT + next(self._runs), commands.INTERFACE
        environment = {
            "TORCH_CPP_LOG_LEVEL": "ERROR",  # it warns about hosts without names
            **os.environ,
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(self.hosts),
            "MASTER_ADDR": self.addresses[0],
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "FARSKIP_NETWORK": self.describe(),
            **({} if interface is None else {"GLOO_SOCKET_IFNAME": interface}),
            **(env or {}),
        }
        parent = None if self._claim is None else self._claim.folder
        with tempfile.TemporaryDirectory(prefix="run-", dir=parent) as folder:
            return run_ranks(target, arguments, places, environment, Path(folder), self.describe(), timeout, self._log)


class Terminated(SystemExit):
    """SIGTERM or SIGHUP as an exception, so that everything is torn down on the way out."""


class _Signals:
    """Turns SIGTERM and SIGHUP into exceptions; possible only in the main thread."""

    def __init__(self) -> None:
        self.installed = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        self.installed = True
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                    self._before[number] = signal.signal(number, self._raise)

    def restore(self) -> None:
        self.installed = False
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    @staticmethod
    def _raise(number: int, frame: FrameType | None) -> None:
        raise Terminated(128 + number)


def _rate(rate: str | int | None) -> int | None:
    return commands.parse_rate(rate) if isinstance(rate, str) else None if rate is None else commands.check_rate(rate)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
