# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the bandwidth table, and the command with made-up measurements."""

from __future__ import annotations

import json
import sys

import network as command
import pytest
from harness import Network, RankResult, bandwidth, iproute, janitor
from harness.bandwidth import ALL_REDUCE, ALL_TO_ALL, STREAM, Row, link_bytes, rows_of, sizes_for, verdict

RATE = 4 * 10**8


def row(operation, share, size=2**24):
    return Row(operation, size, 1.0, 0.0, share * RATE)


def test_what_each_host_has_to_send():
    assert [link_bytes(STREAM, 1200, n) for n in (2, 3, 4)] == [1200, 1200, 1200]
    assert [link_bytes(ALL_TO_ALL, 1200, n) for n in (2, 3, 4)] == [600, 800, 900]
    assert [link_bytes(ALL_REDUCE, 1200, n) for n in (2, 3, 4)] == [1200, 1600, 1800]


def test_sizes_grow_with_the_rate():
    assert sizes_for(10**8) == [2**16, 2**18, 2**20, 2**22]
    assert sizes_for(10**10)[-1] == 2**26
    assert sizes_for(None) == sizes_for(10**10)


def test_rows_take_the_slowest_rank():
    sizes = [1000, 4000]
    quick = [[0.1, 0.2, 0.3, 0.4, 0.5]] * 6
    slow = [*quick[:3], [1.0, 2.0, 3.0, 4.0, 5.0], *quick[4:]]
    rows = rows_of([quick, slow], sizes)
    assert [(r.operation, r.size) for r in rows] == [(o, s) for o in (STREAM, ALL_TO_ALL, ALL_REDUCE) for s in sizes]
    assert [r.seconds for r in rows] == pytest.approx([0.3, 0.3, 0.3, 3.0, 0.3, 0.3])
    assert rows[3].spread == pytest.approx(2.0)
    assert rows[3].link_rate == pytest.approx(8 * 2000 / 3.0)
    assert rows[3].share(10**4) == pytest.approx(8 * 2000 / 3.0 / 10**4)


@pytest.mark.parametrize(
    ("stream", "exchange", "passed", "words"),
    [
        (0.95, 0.5, True, "PASS: the limit is in force: stream 95.0 %, all-to-all 50.0 %"),
        (0.87, 0.5, False, "FAIL: the link is not the bottleneck: stream 87.0 %"),
        (1.05, 0.5, False, "FAIL: the limit is not in force"),
        (0.95, 1.05, False, "FAIL: the limit is not in force"),
    ],
)
def test_the_verdict(stream, exchange, passed, words):
    rows = [row(STREAM, 3.0, 2**16), row(STREAM, stream), row(ALL_TO_ALL, 1.5, 2**16), row(ALL_TO_ALL, exchange)]
    assert verdict(rows, RATE)[0] is passed
    assert words in verdict(rows, RATE)[1]
    assert verdict(rows, None)[0]


def run_command(monkeypatch, tmp_path, seconds, *flags):
    """Exit status and record of the command, when every collective takes `seconds` per byte that a host sends."""

    def run(self, target, args=(), *, env=None, timeout=60.0):
        assert target is bandwidth.measure
        _, addresses, sizes, repetitions = args(0)
        cells = [(o, s) for o in bandwidth.OPERATIONS for s in sizes]
        value = [[seconds * link_bytes(o, s, len(addresses))] * repetitions for o, s in cells]
        return [RankResult(rank, value, self.describe(), ()) for rank in range(self.hosts)]

    file = tmp_path / "record.json"
    monkeypatch.setattr(Network, "run", run)
    monkeypatch.setattr(sys, "argv", ["network.py", "--json", str(file), *flags])
    status = command.main()
    return status, json.loads(file.read_text()) if file.exists() else None


def test_the_command_never_takes_loopback_for_a_network(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(iproute, "why_not", lambda: "this is a test")
    status, record = run_command(monkeypatch, tmp_path, 8 / (0.95 * RATE))
    assert status == 3
    assert (record["network"], record["is_network"], record["passed"]) == ("loopback, not a network", False, False)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "network:  loopback, not a network"
    assert printed[-1] == "NOT CHECKED: loopback, not a network (this is a test)"


@pytest.mark.parametrize(("share", "expected"), [(0.95, 0), (0.5, 1), (1.5, 1)])
def test_the_command_judges_the_rate(monkeypatch, tmp_path, capsys, share, expected):
    monkeypatch.setattr(iproute, "why_not", lambda: None)
    monkeypatch.setattr(Network, "_build", lambda self: None)
    monkeypatch.setattr(Network, "is_network", True)
    status, record = run_command(monkeypatch, tmp_path, 8 / (share * RATE), "--hosts", "3")
    assert status == expected
    assert record["passed"] is (expected == 0)
    assert record["hosts"] == 3
    assert all(found["share"] == pytest.approx(share) for found in record["rows"])
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == record["verdict"]
    assert max(map(len, printed.splitlines()[5:-1])) <= 80


def test_wrong_usage_and_cleaning(monkeypatch, tmp_path, capsys):
    assert run_command(monkeypatch, tmp_path, 1.0, "--rate", "1mbit")[0] == 2
    assert "100 Mbit/s to 10 Gbit/s" in capsys.readouterr().err
    monkeypatch.setattr(command, "why_not", lambda: None)
    monkeypatch.setattr(janitor, "sweep", lambda: ["7-0", "8-0"])
    assert run_command(monkeypatch, tmp_path, 1.0, "--clean") == (0, None)
    assert "removed 2 networks of killed runs: 7-0, 8-0" in capsys.readouterr().out
