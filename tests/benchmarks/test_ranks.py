# SPDX-License-Identifier: Apache-2.0
"""Processes: results come back, one that fails takes the others with it, and none is left in any case."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import HarnessError, Network, RankFailedError, RankTimeoutError, iproute
from harness.ranks import cores_for

from tests.benchmarks import rank_functions

OWNER = Path(__file__).with_name("owner.py")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def no_namespaces(monkeypatch):
    monkeypatch.setattr(iproute, "why_not", lambda: "wanted by the test")


@pytest.fixture
def network(no_namespaces):
    with Network(2, log=None) as network:
        yield network


def alive(pid):
    """Whether a process runs; one that nobody has reaped yet does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def pids(folder):
    return [int(word) for file in Path(folder).glob("*.pid") for word in file.read_text().split()]


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)


def test_functions_commands_and_their_environment(network):
    results = network.run(rank_functions.show, lambda rank: (rank, "x"), env={"EXTRA": "7"})
    assert [result.rank for result in results] == [0, 1]
    for rank, result in enumerate(results):
        value = result.value
        assert value["args"] == [rank, "x"]
        assert (value["RANK"], value["LOCAL_RANK"], value["WORLD_SIZE"]) == (str(rank), "0", "2")
        assert (value["MASTER_ADDR"], value["OMP_NUM_THREADS"], value["EXTRA"]) == ("127.0.0.1", "1", "7")
        assert result.lines == (f"a line of rank {rank}",)
        assert result.network == "loopback, not a network"
    program = "import os, sys; open(os.environ['FARSKIP_RESULT'], 'w').write(sys.argv[1])"
    results = network.run([sys.executable, "-c", program], lambda rank: (10 + rank,))
    assert [result.value for result in results] == [10, 11]
    assert [result.value for result in network.run(["true"])] == [None, None]


def test_lines_are_passed_on_while_ranks_run(no_namespaces):
    lines = []
    with Network(2, log=lambda rank, line: lines.append((rank, line))) as network:
        network.run(["echo"], lambda rank: (f"I am {rank}",))
    assert sorted(lines) == [(0, "I am 0"), (1, "I am 1")]


def test_the_rank_that_fails_takes_the_others_with_it(network, tmp_path):
    start = time.monotonic()
    with pytest.raises(RankFailedError) as caught:
        network.run(rank_functions.sleep_or_raise, lambda rank: (rank, 1, str(tmp_path), True))
    assert time.monotonic() - start < 60  # the other would have slept for ten minutes
    (failure,) = caught.value.failures
    assert failure.rank == 1
    assert failure.how == "exit status 1"
    message = str(caught.value)
    assert "rank 1: exit status 1" in message
    assert "before the error" in message
    assert "ValueError: this rank has a problem" in message
    assert "asleep" not in message  # what the other printed
    assert len(pids(tmp_path)) == 2  # the other rank and what it had started
    wait_until(lambda: not any(map(alive, pids(tmp_path))))


def test_a_rank_that_dies_of_a_signal(network):
    with pytest.raises(RankFailedError, match="rank 1: killed by SIGSEGV; its last lines"):
        network.run(rank_functions.crash, lambda rank: (rank,))


def test_a_timeout_kills_all_and_names_those_that_were_late(network, tmp_path):
    with pytest.raises(RankTimeoutError) as caught:
        network.run(rank_functions.sleep_or_raise, lambda rank: (rank, None, str(tmp_path), True), timeout=1.5)
    assert [failure.how for failure in caught.value.failures] == ["still running after 1.5 s"] * 2
    assert len(pids(tmp_path)) == 4
    wait_until(lambda: not any(map(alive, pids(tmp_path))))


def test_a_function_owes_a_result_that_json_can_hold(network):
    with pytest.raises(RankFailedError, match="set is not JSON serializable"):
        network.run(rank_functions.unserialisable)
    with pytest.raises(RankFailedError, match="no result, but exit status 0"):
        network.run(rank_functions.leave_early)


def test_what_ranks_can_not_import_is_refused_before_any_starts(network):
    for target in (lambda: 1, test_what_ranks_can_not_import_is_refused_before_any_starts.__call__):
        with pytest.raises(HarnessError, match="ranks can't import"):
            network.run(target)


def test_cores():
    assert cores_for(2, [5, 3, 4]) == [3, 4]
    assert cores_for(4, [0, 1]) == [None] * 4


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system can't pin processes")
def test_each_rank_has_one_core_if_there_are_enough(network):
    allowed = sorted(os.sched_getaffinity(0))
    values = [result.value for result in network.run(rank_functions.cores)]
    assert values == ([[allowed[0]], [allowed[1]]] if len(allowed) >= 2 else [allowed] * 2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent")
def test_ranks_die_with_the_process_that_started_them(tmp_path):
    owner = subprocess.Popen([sys.executable, OWNER, BENCHMARKS, tmp_path, "loopback"])
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        ranks = [int(file.read_text().split()[0]) for file in tmp_path.glob("*.pid")]
        assert all(map(alive, ranks))
        owner.kill()
        owner.wait()
        wait_until(lambda: not any(map(alive, ranks)))
    finally:
        owner.kill()
        for pid in pids(tmp_path):  # without namespaces nobody knows what the ranks had started
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_call_may_be_larger_than_a_pipe_and_leaves_no_file(network):
    for result in network.run(rank_functions.what_it_was_given, lambda rank: ("x" * 10**6,)):
        length, rest, names = result.value
        assert (length, rest) == (10**6, "")
        assert {Path(name).suffix for name in names} <= {".json"}
