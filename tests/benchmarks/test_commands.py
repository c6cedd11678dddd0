# SPDX-License-Identifier: Apache-2.0
"""The lists of iproute2 commands: what is built is removed, every cable is limited, the machine is not touched."""

from __future__ import annotations

import re

import pytest
from harness import commands
from harness.commands import INTERFACE, Link, Names, token_of
from harness.janitor import MOST_HOSTS

HOSTS = [2, 3, 4]


def added(hosts):
    """(namespace, interface) of everything that `setup` makes, and all namespaces."""
    made = set()
    for command in commands.setup(Names("7-0", hosts), Link(10**9)):
        words = list(command)
        if words[1:3] == ["link", "add"]:  # a pair
            ends = [(words[i + 1], words[i + 3]) for i, word in enumerate(words) if word == "name"]
            made |= {(namespace, name) for name, namespace in ends}
        elif words[3:5] == ["link", "add"]:
            made.add((words[2], words[5]))
    return made


def namespaces(found, verb):
    return [command[3] for command in found if command[:3] == ("ip", "netns", verb)]


def test_names_are_recognisable_and_no_two_networks_share_any():
    one, other = Names("123-0", 4), Names("123-1", 4)
    assert len({*one.namespaces, *other.namespaces}) == 10
    for names in (one, other):
        assert {token_of(name) for name in names.namespaces} == {names.token}
    for foreign in ("farskip", "farskip-1-switch", "farskip-1-0-hostx", "xfarskip-1-0-switch", "farskip-1-0-switch2"):
        assert token_of(foreign) is None


@pytest.mark.parametrize("hosts", HOSTS)
def test_interfaces_have_names_that_the_kernel_takes(hosts):
    assert len(added(hosts)) == 2 * hosts + 1
    assert all(0 < len(name) <= 15 and re.fullmatch(r"[a-z0-9]+", name) for _, name in added(hosts))


@pytest.mark.parametrize("hosts", HOSTS)
def test_what_is_set_up_is_taken_down_by_name(hosts):
    """Also by the janitor, which does not know how many hosts there are."""
    for names in (Names("7-0", hosts), Names("7-0", MOST_HOSTS)):
        removed = commands.teardown(names)
        first_namespace = next(i for i, command in enumerate(removed) if command[1] == "netns")
        interfaces = {(c[2], c[5]) for c in removed[:first_namespace] if c[3:5] == ("link", "delete")}
        # the host's end of a pair goes with the switch's
        assert {end for end in added(hosts) if end[1] != INTERFACE} <= interfaces
        built = namespaces(commands.setup(Names("7-0", hosts), Link()), "add")
        assert set(built) <= set(namespaces(removed[first_namespace:], "delete"))
        assert len(built) == hosts + 1


@pytest.mark.parametrize("hosts", HOSTS)
@pytest.mark.parametrize("rate", [10**8, 4 * 10**8, 10**10])
def test_both_ends_of_every_cable_are_limited(hosts, rate):
    found = commands.setup(Names("7-0", hosts), Link(rate))
    limited = {(c[2], c[6]): c for c in found if c[0] == "tc" and "tbf" in c}
    assert set(limited) == {end for end in added(hosts) if end[1] != commands.BRIDGE}
    for command in limited.values():
        assert command[command.index("rate") + 1] == f"{rate}bit"
        burst = int(command[command.index("burst") + 1])
        assert burst >= 65_536 + 45 * 66  # the largest segment with all headers; others are cut, each packet by a timer
        assert burst / (rate / 8) < 0.007  # seconds' worth of sending for nothing


def test_no_limit_removes_a_limit():
    found = commands.limit(Names("7-0", 2), Link(None))
    assert len(found) == 4
    assert all(c[4] == "replace" and c[-1] == "noqueue" for c in found)


def test_a_delay_lies_behind_the_bucket():
    names = Names("7-0", 3)
    assert commands.delay(names, Link(10**9)) == []
    behind = commands.delay(names, Link(10**9, 0.0005))
    assert [c[2] for c in behind] == names.namespaces[:3]
    assert all(c[c.index("parent") + 1] == "1:1" and c[c.index("delay") + 1] == "500us" for c in behind)
    assert all("root" in c for c in commands.delay(names, Link(None, 0.0005)))


@pytest.mark.parametrize("hosts", HOSTS)
def test_nothing_is_made_in_the_namespace_of_the_machine(hosts):
    names, link = Names("7-0", hosts), Link(10**9, 0.001)
    makers = (commands.setup(names, link), commands.tune(names), commands.delay(names, link), commands.teardown(names))
    for command in (command for maker in makers for command in maker):
        inside = command[1] == "-n" or command[1] == "netns"
        assert inside or (command[1:3] == ("link", "add") and command.count("netns") == 2), command
