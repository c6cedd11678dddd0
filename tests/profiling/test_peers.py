# SPDX-License-Identifier: Apache-2.0
"""Waiting for late ranks: what can be told from the traces of all ranks, and what can't."""

from __future__ import annotations

from dataclasses import replace

import pytest

from farskip_compile.measure.profiling import overlap
from farskip_compile.measure.profiling.chrome import RanksMissingError
from farskip_compile.measure.profiling.text import headline
from tests.profiling.gpu_traces import SEND_RECV, kernel
from tests.profiling.traces import OTHER_WORKER, gloo, op, trace


def ranks(*events, world=None, **kwargs):
    return [trace(of_rank, rank, world_size=world or len(events), **kwargs) for rank, of_rank in enumerate(events)]


def test_the_last_rank_decides():
    early = [op("aten::mm", 5, 15), gloo("all_reduce", 0, 40), gloo("all_reduce", 50, 60)]
    late = [gloo("all_reduce", 30, 41), gloo("all_reduce", 50, 61), gloo("broadcast", 70, 71)]
    raw = overlap(ranks(early, late))
    assert [one.peer_wait_ns for one in raw.ranks[0].collectives] == [30_000, 0]
    assert [one.peer_wait_ns for one in raw.ranks[1].collectives] == [0, 0, None]
    assert raw.ranks[0].peer_wait_ns == 30_000
    assert raw.ranks[1].peer_wait_ns is None
    assert (raw.ranks[0].communication_ns, raw.ranks[0].exposed_ns) == (50_000, 40_000)
    without = overlap(ranks(early, late), subtract_peer_wait=True)
    first = without.ranks[0].collectives[0]
    assert (first.start_ns, first.communication_ns, first.exposed_ns, first.hidden_by) == (30_000, 10_000, 10_000, ())
    assert (without.ranks[0].communication_ns, without.ranks[0].exposed_ns) == (20_000, 20_000)
    assert "waits for late ranks subtracted" in headline(without)


def test_collectives_at_once_wait_only_while_none_moves():
    first = [gloo("all_reduce", 0, 40), gloo("all_to_all", 0, 20, OTHER_WORKER)]
    second = [gloo("all_reduce", 30, 40), gloo("all_to_all", 10, 20, OTHER_WORKER)]
    assert overlap(ranks(first, second)).ranks[0].peer_wait_ns == 20_000, "0 to 10 and 20 to 30"


def test_clocks_that_differ_are_noticed():
    report = overlap(ranks([gloo("all_reduce", 0, 40)], [gloo("all_reduce", 940, 950)]))
    assert "by up to 0.9 ms" in report.notes[0]
    assert report.ranks[0].collectives[0].peer_wait_ns == 40_000, "not more than the whole"


def test_unequal_counts_are_not_matched():
    report = overlap(ranks([gloo("all_reduce", 0, 4)], [gloo("all_reduce", 0, 4), gloo("all_reduce", 5, 9)]))
    assert report.ranks[0].peer_wait_ns is None
    assert report.notes == ("3 collectives without a counterpart on every rank: waiting for peers not known.",)


def test_a_rank_without_a_counterpart_is_no_match():
    report = overlap(ranks([gloo("all_reduce", 0, 9)], [gloo("all_reduce", 4, 9)], [gloo("all_to_all", 0, 4)]))
    assert [rank.collectives[0].peer_wait_ns for rank in report.ranks] == [None, None, None]


def test_collectives_with_a_root_may_end_early():
    report = overlap(ranks([gloo("broadcast", 0, 4)], [gloo("broadcast", 2, 9)]))
    assert [rank.collectives[0].peer_wait_ns for rank in report.ranks] == [None, None]


def test_several_groups_on_cpu_can_not_be_told_apart():
    events = [gloo("all_reduce", 0, 4)]
    same = ranks(events, events, groups=[[0, 1], [1, 0]])
    assert overlap(same).ranks[0].peer_wait_ns is None
    assert overlap(ranks(events, events, groups=[[0, 1], [0, 1]])).ranks[0].peer_wait_ns == 0
    with pytest.raises(RanksMissingError, match="several process groups"):
        overlap(same, subtract_peer_wait=True)


def test_groups_of_some_ranks_on_gpu():
    def dispatch(start, end, ranks):
        name = {"Collective name": "all_to_allv", "Process Group Name": str(ranks), "Process Group Ranks": str(ranks)}
        return [kernel(SEND_RECV, start, end, 20, **name)]

    traces = ranks(dispatch(0, 9, [0, 1]), dispatch(4, 9, [0, 1]), dispatch(20, 30, [2, 3]), dispatch(27, 30, [2, 3]))
    waits = [rank.collectives[0].peer_wait_ns for rank in overlap(traces, subtract_peer_wait=True).ranks]
    assert waits == [4_000, 0, 7_000, 0]


def grouped(kind, start, end, ranks, name=SEND_RECV):
    about = {"Collective name": kind, "Process Group Name": str(ranks), "Process Group Ranks": str(ranks)}
    return kernel(name, start, end, 20, **about)


def test_kernels_without_a_group_do_not_keep_others_from_being_matched():
    one_shot = "void vllm::cross_device_reduce_1stage<float, 2>(int)"
    first = [grouped("all_to_allv", 0, 9, [0, 1]), kernel(one_shot, 10, 12, 21)]
    second = [grouped("all_to_allv", 4, 9, [0, 1]), kernel(one_shot, 11, 12, 21)]
    report = overlap(ranks(first, second, groups=[[0, 1], [1, 0]]), subtract_peer_wait=True)
    assert [one.peer_wait_ns for one in report.ranks[0].collectives] == [4_000, None]
    assert report.notes == (
        "2 collectives of unknown process group, of which there are several: waiting for peers not known.",
    )
    one_group = overlap(ranks(first, second, groups=[[0, 1]]))
    assert [one.peer_wait_ns for one in one_group.ranks[0].collectives] == [4_000, 1_000]


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        ("void deep_ep::internode_ll::dispatch<true, 3, 10, 7168>(void*)", None),
        ("Memcpy PtoP (Device -> Device)", None),
        ("ncclDevKernel_Generic_4(ncclDevKernelArgsStorage<4096ul>)", None),
        ("ncclDevKernel_Generic_4(ncclDevKernelArgsStorage<4096ul>)", "coalesced"),
        ("c10d::symmetric_memory::put_signal_kernel(unsigned int**)", None),
        (SEND_RECV, None),
        (SEND_RECV, "coalesced"),
        (SEND_RECV, "gather"),
    ],
)
def test_what_a_rank_may_be_done_with_before_another_begins(name, recorded):
    about = {"Collective name": recorded} if recorded else {}
    first, *second = (kernel(name, at, at + 2, 21, **about) for at in (0, 50, 60))
    first = [first]
    report = overlap(ranks(first, second))
    assert [one.peer_wait_ns for rank in report.ranks for one in rank.collectives] == [None, None, None]
    assert not any("counterpart" in note for note in report.notes)


def test_copies_of_an_exchange_are_matched_with_nothing_else():
    """NCCL may do an all-gather by a kernel on one rank's clock and by copies of the same name on the next call."""
    about = {"Collective name": "_allgather_base", "Process Group Name": "1", "Process Group Ranks": "[0, 1]"}
    gather = kernel("ncclDevKernel_AllGather_RING_LL()", 0, 9, 20, **about)
    copied = [kernel("Memcpy PtoP (Device -> Device)", 20 + i, 21 + i, 22, **about) for i in range(3)]
    late = {**gather, "ts": 5}
    report = overlap(ranks([gather, *copied], [late, *copied[:1]]))
    assert [one.peer_wait_ns for one in report.ranks[0].collectives] == [5_000, None, None, None]


def test_groups_that_a_profile_does_not_show():
    """Nsight Systems knows none: nothing is matched, and that is said."""
    traces = [replace(one, groups=None) for one in ranks([gloo("all_reduce", 0, 4)], [gloo("all_reduce", 2, 4)])]
    assert overlap(traces).ranks[0].peer_wait_ns is None
    with pytest.raises(RanksMissingError, match="which process groups there are"):
        overlap(traces, subtract_peer_wait=True)


def test_traces_of_different_runs():
    events = [gloo("all_reduce", 0, 4)]
    with pytest.raises(RanksMissingError, match="runs with 1 and 2 ranks"):
        overlap([trace(events, 0, world_size=2), trace(events, 1)], subtract_peer_wait=True)


def test_hosts_are_noted():
    events = [gloo("all_reduce", 0, 4)]
    two = [trace(events, rank, world_size=2, host_name=f"host{rank}") for rank in (0, 1)]
    assert overlap(two).notes == ("The clocks of 2 hosts are compared as they are.",)
