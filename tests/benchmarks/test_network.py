# SPDX-License-Identifier: Apache-2.0
"""The network itself: the way out without namespaces, and, as root with iproute2, a real one and its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import (
    LOOPBACK,
    Network,
    NetworkUnavailableError,
    QuantityError,
    TeardownError,
    commands,
    iproute,
    janitor,
)
from harness.commands import Names, token_of

from tests.benchmarks import rank_functions
from tests.benchmarks.test_ranks import BENCHMARKS, OWNER, alive, pids, wait_until


def possible():
    """Whether namespaces can be made here; tried, because a container's root may lack the right."""
    if iproute.why_not() is not None:
        return False
    with Network(2, log=None) as network:
        return network.is_network


namespaces = pytest.mark.skipif(not possible(), reason="needs root and iproute2")


def everything(token):
    """What exists of a network: namespaces, folder, processes."""
    found = janitor.leftovers(token)
    return [*found, *(pid for name in found for pid in iproute.processes(name)), *janitor.FOLDER.glob(token)]


# Without namespaces


@pytest.mark.parametrize(
    ("platform", "tools", "user", "reason"),
    [
        ("darwin", ["ip", "tc"], 0, "need Linux, and this is darwin"),
        ("linux", ["ip"], 0, "iproute2 is not installed: no tc on the path"),
        ("linux", [], 0, "iproute2 is not installed: no ip and no tc on the path"),
        ("linux", ["ip", "tc"], 1000, "need root"),
        ("linux", ["ip", "tc"], 0, None),
    ],
)
def test_why_there_is_no_network(monkeypatch, platform, tools, user, reason):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(iproute.shutil, "which", lambda name: f"/bin/{name}" if name in tools else None)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    said = iproute.why_not()
    assert said is None if reason is None else reason in said


def test_loopback_is_labelled_everywhere(monkeypatch, capsys):
    monkeypatch.setattr(iproute, "why_not", lambda: "this is a test")
    with Network(3, "1gbit", log=None) as network:
        assert not network.is_network
        assert network.describe() == LOOPBACK == "loopback, not a network"
        assert network.sent_bytes() is None
        network.set_rate("2gbit")  # nothing to set
        results = network.run(rank_functions.show)
        shell = network.run(["sh", "-c", 'echo "\\"$FARSKIP_NETWORK\\"" > $FARSKIP_RESULT'])
    assert [result.network for result in results] == [LOOPBACK] * 3
    assert [result.value for result in shell] == [LOOPBACK] * 3
    assert f"{LOOPBACK}: this is a test" in capsys.readouterr().err


def test_whoever_needs_a_network_gets_an_error(monkeypatch):
    monkeypatch.setattr(iproute, "why_not", lambda: "this is a test")
    with pytest.raises(NetworkUnavailableError, match=r"(?s)this is a test.*way out: run as root"):
        Network(2, require=True).__enter__()


def test_numbers_out_of_range():
    for hosts in (1, 5):
        with pytest.raises(QuantityError, match="2 to 4 hosts"):
            Network(hosts)
    with pytest.raises(QuantityError, match="100 Mbit/s to 10 Gbit/s"):
        Network(2, 10**7)


def test_a_command_that_fails_is_named():
    with pytest.raises(NetworkUnavailableError, match="`false one two` failed: exit status 1"):
        iproute.execute([("true",), ("false", "one", "two"), ("true",)])
    assert iproute.attempt(("no-such-program",))[0] != 0


# With namespaces


@namespaces
def test_two_hosts_talk_over_their_cables_and_nothing_is_left():
    with Network(2, "1gbit", log=None, require=True) as network:
        token = network._claim.token
        before = network.sent_bytes()
        results = network.run(rank_functions.gloo_sum, lambda rank: (rank, 2))
        after = network.sent_bytes()
        assert len(janitor.leftovers(token)) == 3
    assert everything(token) == []
    assert [result.value["sum"] for result in results] == [3.0, 3.0]
    assert all("farskip0" in result.value["interfaces"] for result in results)
    assert all("eth0" not in result.value["interfaces"] for result in results)
    assert all(b - a > 4000 for a, b in zip(before, after, strict=True))  # the tensor went over the cable
    assert {result.network for result in results} == {"2 hosts (network namespaces), 1 Gbit/s up and down each"}


@namespaces
def test_the_kernel_has_the_rate_that_was_set():
    with Network(4, "400mbit", log=None, require=True) as network:
        names = network._names
        ends = [(names.host(i), "farskip0") for i in range(4)] + [(names.switch, f"port{i}") for i in range(4)]
        for rate, shown in ((None, "noqueue"), ("2.5gbit", "rate 2500Mbit"), ("100mbit", "rate 100Mbit")):
            network.set_rate(rate)
            for namespace, device in ends:
                _, output, _ = iproute.attempt(("tc", "-n", namespace, "qdisc", "show", "dev", device))
                assert shown in output, output


@namespaces
def test_segments_are_large_where_they_are_asked_for_and_the_kernel_can():
    with Network(2, "400mbit", log=None, require=True) as network:
        names = network._names

        def found() -> set[int]:
            ends = [(names.host(i), "farskip0") for i in range(2)] + [(names.switch, f"port{i}") for i in range(2)]
            shown = [iproute.attempt(("ip", "-n", n, "-d", "-j", "link", "show", "dev", d))[1] for n, d in ends]
            return {json.loads(text)[0]["gso_ipv4_max_size"] for text in shown}

        network.set_rate("400mbit", large_segments=True)
        if network.link.segment == commands.SEGMENT:
            assert "KiB" not in network.describe()
            assert found() == {commands.SEGMENT}
        else:
            assert "segments of 256 KiB" in network.describe()
            assert found() == {commands.LARGE_SEGMENT}
        network.set_rate("500mbit")
        assert "KiB" not in network.describe()
        assert found() == {commands.SEGMENT}


@namespaces
def test_a_kernel_without_large_segments_keeps_its_own(monkeypatch):
    with Network(2, "400mbit", log=None, require=True) as network:
        attempt = iproute.attempt
        large = str(commands.LARGE_SEGMENT)
        monkeypatch.setattr(iproute, "attempt", lambda c: (1, "", "no") if large in c else attempt(c))
        network.set_rate("500mbit", large_segments=True)
        assert network.link.segment == commands.SEGMENT
        assert network.link.rate == 500_000_000
        assert "KiB" not in network.describe()


@namespaces
def test_an_error_inside_leaves_nothing():
    def fail():
        with Network(2, log=None, require=True) as network:
            tokens.append(network._claim.token)
            assert len(everything(tokens[0])) == 4
            raise ZeroDivisionError

    tokens = []
    with pytest.raises(ZeroDivisionError):
        fail()
    assert everything(tokens[0]) == []


@namespaces
def test_an_error_while_building_leaves_nothing_but_loopback(monkeypatch):
    execute = iproute.execute

    def fail_at_the_end(commands):
        tokens.append(token_of(commands[0][3]))
        execute([*commands[:-1], ("ip", "no-such-thing")])

    tokens = []
    monkeypatch.setattr(iproute, "execute", fail_at_the_end)
    with Network(2, log=None) as network:
        assert network.describe() == LOOPBACK
        assert "`ip no-such-thing` failed" in network.problem
        assert everything(tokens[0]) == []


@namespaces
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_killed_owner_leaves_nothing(tmp_path, how):
    """By its own hand, for want of a watchman; or, if it has no time for that, by the watchman's."""
    with owner(tmp_path) as (process, token, ranks):
        if how != signal.SIGKILL:
            os.kill(watchman_of(process), signal.SIGKILL)
        process.send_signal(how)
        status = process.wait(20)
        if how == signal.SIGKILL:
            wait_until(lambda: everything(token) == [])
        assert everything(token) == []
        assert not any(map(alive, ranks))
        assert status == {signal.SIGKILL: -9, signal.SIGINT: -2}.get(how, 128 + how)


@namespaces
def test_the_next_run_sweeps_up_when_the_watchman_is_killed_too(tmp_path):
    with owner(tmp_path) as (process, token, ranks):
        os.kill(watchman_of(process), signal.SIGKILL)
        assert token not in janitor.sweep()  # its owner lives
        assert len(janitor.leftovers(token)) == 3
        process.kill()
        process.wait()
        assert len(janitor.leftovers(token)) == 3
        with Network(2, log=None, require=True):
            assert everything(token) == []
        assert not any(map(alive, ranks))


@namespaces
def test_interfaces_go_even_if_a_process_holds_the_namespace(monkeypatch):
    """As one does that can't be killed."""
    with Network(2, log=None, require=True) as network:
        token, host = network._claim.token, network._names.host(0)
        holder = subprocess.Popen(["ip", "netns", "exec", host, "sleep", "600"], start_new_session=True)
        wait_until(lambda: holder.pid in iproute.processes(host))
        monkeypatch.setattr(janitor.iproute, "processes", lambda namespace: [])
    try:
        assert janitor.leftovers(token) == []
        links = subprocess.run(
            ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "ip", "-br", "link"], capture_output=True, text=True
        )
        assert links.returncode == 0
        assert "lo " in links.stdout
        assert "farskip0" not in links.stdout
    finally:
        holder.kill()
        holder.wait()


@namespaces
def test_what_can_not_be_removed_is_named(monkeypatch):
    network = Network(2, log=None, require=True).__enter__()
    token = network._claim.token
    with monkeypatch.context() as patch:
        patch.setattr(janitor, "teardown", lambda names: [("ip", "netns", "delete", "farskip-0-0-switch")])
        with pytest.raises(TeardownError, match=rf"(?s)still there: .*{Names(token, 2).switch}.*netns delete"):
            network.__exit__(None, None, None)
    wait_until(lambda: everything(token) == [])  # the watchman had another try


def watchman_of(process):
    """The process that watches over the network of another."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and "harness.janitor" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    (watchman,) = found
    return watchman


@contextlib.contextmanager
def owner(folder):
    """A process that owns a network whose two ranks and their children sleep; its token; those processes."""
    process = subprocess.Popen(
        [sys.executable, OWNER, BENCHMARKS, folder, "network"],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # also where CI ignores it
    )
    try:
        wait_until(lambda: len(list(folder.glob("*.pid"))) == 2)
        token, ranks = (folder / "token").read_text(), pids(folder)
        assert len(ranks) == 4
        assert all(map(alive, ranks))
        yield process, token, ranks
    finally:
        process.kill()
        process.wait()
