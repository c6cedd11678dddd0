# SPDX-License-Identifier: Apache-2.0
"""A network as data: rates and delays as text, and lists of iproute2 commands. Nothing is run here.

    host 0                    switch                    host 1        three network namespaces
    farskip0 ───────── port0 ─ bridge ─ port1 ───────── farskip0      two veth pairs and a bridge
    10.77.0.1                                           10.77.0.2

A token bucket (`tc tbf`) sits at both ends of every pair: at the host's end it limits what the host sends, at the
switch's end what it receives. So each host has the wanted rate up and down, as with a full-duplex cable.

Contract: the switch has its own namespace, in which no process ever runs. Nothing is created in the machine's own
namespace, so that its bridges and firewall don't matter. Removing the switch's end of a pair removes the other end too,
even if a process that can't be killed holds the host's namespace. Units are those of `tc`: `mbit` is 10^6 bits per
second. `mbps` is refused: `tc` reads it as megabytes per second, most people don't.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from harness.errors import QuantityError

Command = tuple[str, ...]

INTERFACE = "farskip0"
"""Name of every host's interface, for GLOO_SOCKET_IFNAME."""
BRIDGE = "bridge"
SEGMENT, LARGE_SEGMENT = 65_536, 262_144
"""Bytes."""
_NAMESPACE = re.compile(r"farskip-(\d+-\d+)-(?:switch|host\d+)")


@dataclass(frozen=True)
class Names:
    """The names in one network. Each network has its own token: `<process id>-<number>`."""

    token: str
    hosts: int

    @property
    def switch(self) -> str:
        """Namespace of the bridge."""
        return f"farskip-{self.token}-switch"

    def host(self, index: int) -> str:
        """Namespace of one host."""
        return f"farskip-{self.token}-host{index}"

    @property
    def namespaces(self) -> list[str]:
        """All of them, hosts first."""
        return [*map(self.host, range(self.hosts)), self.switch]

    @property
    def ends(self) -> list[tuple[str, str]]:
        """Namespace and interface at both ends of every pair."""
        pairs = (((self.host(i), INTERFACE), (self.switch, self.port(i))) for i in range(self.hosts))
        return [end for pair in pairs for end in pair]

    @staticmethod
    def port(index: int) -> str:
        """The switch's end of a host's pair."""
        return f"port{index}"

    @staticmethod
    def address(index: int) -> str:
        """Of one host; any address will do, since nothing outside can be reached."""
        return f"10.77.0.{index + 1}"


def token_of(namespace: str) -> str | None:
    """The token in the name of a namespace; None if it is not one of ours."""
    match = _NAMESPACE.fullmatch(namespace)
    return match and match[1]


@dataclass(frozen=True)
class Link:
    """The cable of every host."""

    rate: int | None = None
    """Bits per second in each direction; None: no limit."""
    delay: float | None = None
    """Seconds from a host to the switch; needs the kernel's netem."""

    segment: int = SEGMENT
    """Bytes that TCP hands to the interface at once; real hardware splits them into packets. Each is an event, here on
    the cores that compute: at 700 Mbit/s, compute is 16 % slower with 64 KiB and 7 % with 256 KiB."""

    @property
    def burst(self) -> int:
        """Bytes that may pass at once: a millisecond's worth, and at least one segment of the largest size with all
        packet headers. The kernel would split a larger one into packets with a timer each: 20 times as many events."""
        return max(round(1.25 * self.segment), round((self.rate or 0) / 8 * 1e-3))


def setup(names: Names, link: Link) -> list[Command]:
    """Build the network. The first command fails if permissions are missing."""
    switch = names.switch
    commands: list[Command] = [("ip", "netns", "add", name) for name in names.namespaces]
    commands.append(("ip", "-n", switch, "link", "add", BRIDGE, "type", "bridge"))
    commands.append(("ip", "-n", switch, "link", "set", BRIDGE, "up"))
    for index in range(names.hosts):
        host, port = names.host(index), names.port(index)
        pair = ("type", "veth", "peer", "name", INTERFACE, "netns", host)
        commands += [
            ("ip", "link", "add", "name", port, "netns", switch, *pair),
            ("ip", "-n", switch, "link", "set", port, "master", BRIDGE, "up"),
            ("ip", "-n", host, "address", "add", f"{names.address(index)}/24", "dev", INTERFACE),
            ("ip", "-n", host, "link", "set", INTERFACE, "up"),
            ("ip", "-n", host, "link", "set", "lo", "up"),
        ]
    return commands + limit(names, link)


def limit(names: Names, link: Link) -> list[Command]:
    """Set the rate at every end of every pair; also on a network that already has another one."""
    queue: Command = ("noqueue",)
    if link.rate is not None:
        queue = ("handle", "1:", "tbf", "rate", f"{link.rate}bit", "burst", str(link.burst), "latency", "100ms")
    return [("tc", "-n", place, "qdisc", "replace", "dev", device, "root", *queue) for place, device in names.ends]


def delay(names: Names, link: Link) -> list[Command]:
    """Delay every packet at its host by `link.delay`: after the bucket of `limit`, if there is one."""
    if link.delay is None:
        return []
    place = ("root",) if link.rate is None else ("parent", "1:1")
    held = ("handle", "2:", "netem", "delay", f"{round(link.delay * 1e6)}us", "limit", "100000")
    return [
        ("tc", "-n", names.host(index), "qdisc", "replace", "dev", INTERFACE, *place, *held)
        for index in range(names.hosts)
    ]


def segments(names: Names, link: Link) -> list[Command]:
    """The segment size at both ends of every pair: above 64 KiB it is BIG TCP (Linux 6.3 for IPv4)."""
    keys = ("gso_max_size", "gro_max_size", "gso_ipv4_max_size", "gro_ipv4_max_size")
    sizes = [word for key in keys for word in (key, str(link.segment))]
    return [("ip", "-n", namespace, "link", "set", "dev", device, *sizes) for namespace, device in names.ends]


def tune(names: Names) -> list[Command]:
    """TCP as in a data centre, whatever this machine's defaults are; each command may fail, at little loss.

    CUBIC, because BBR takes long to find the rate after each pause; and no slow start after a pause, because a training
    step is full of pauses.
    """
    wanted = (("tcp_congestion_control", "cubic"), ("tcp_slow_start_after_idle", "0"))
    return [
        ("ip", "netns", "exec", names.host(index), "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{key}")
        for index in range(names.hosts)
        for key, value in wanted
    ]


def teardown(names: Names) -> list[Command]:
    """Remove the network, once its processes are killed; each command may fail, since any part may be missing."""
    switch = names.switch
    commands: list[Command] = [("ip", "-n", switch, "link", "delete", names.port(i)) for i in range(names.hosts)]
    commands.append(("ip", "-n", switch, "link", "delete", BRIDGE))
    return commands + [("ip", "netns", "delete", name) for name in names.namespaces]


# Quantities

SLOWEST, FASTEST = 100_000_000, 10_000_000_000
"""Bits per second: below, runs take long; above, one processor can't saturate a link."""

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg])?bit(?:/s)?", re.IGNORECASE | re.ASCII)
_FACTOR = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_DELAY = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", re.IGNORECASE | re.ASCII)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def parse_rate(text: str) -> int:
    """Bits per second from `400mbit`, `2.5 Gbit/s`, ...; `QuantityError` if it is not a rate or out of range."""
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise QuantityError(
            f"{text!r} is not a rate", way_out="write 400mbit or 2.5gbit: bits per second, powers of ten"
        )
    rate = round(float(match[1]) * _FACTOR[(match[2] or "").lower()])
    return check_rate(rate)


def check_rate(rate: int) -> int:
    """The same rate, if a link can have it."""
    if not SLOWEST <= rate <= FASTEST:
        raise QuantityError(f"a link has {format_rate(SLOWEST)} to {format_rate(FASTEST)}, not {format_rate(rate)}")
    return rate


def format_rate(rate: float | None) -> str:
    """`400 Mbit/s`, `2.5 Gbit/s`; None is `no limit`."""
    if rate is None:
        return "no limit"
    unit = next((unit for unit in ("g", "m", "k") if rate >= _FACTOR[unit]), "")
    digits = f"{rate / _FACTOR[unit]:.4g}"
    return f"{digits} {unit.upper() if unit != 'k' else unit}bit/s"


def parse_delay(text: str) -> float:
    """Seconds from `500us` or `1.5ms`; positive, at most one second."""
    match = _DELAY.fullmatch(text.strip())
    if match is None:
        raise QuantityError(f"{text!r} is not a delay", way_out="write 500us or 1.5ms")
    seconds = float(match[1]) * _SECONDS[match[2].lower()]
    if not (0.0 < seconds <= 1.0 and math.isfinite(seconds)):
        raise QuantityError(f"a delay is positive and at most 1 s, not {text}")
    return seconds
