# SPDX-License-Identifier: Apache-2.0
"""The report on constructed traces: against an oracle that looks at every nanosecond, and with known answers."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.measure.profiling import NoCollectivesError, TraceError, overlap
from farskip_compile.measure.profiling.chrome import RanksMissingError
from farskip_compile.measure.profiling.data import Collective, CollectiveDevice, Trace
from farskip_compile.measure.profiling.intervals import union
from tests.profiling.traces import MAIN, OTHER_WORKER, annotation, gloo, op, trace

END = 80


@st.composite
def lanes(draw):
    """Disjoint segments in order, as a thread or stream has them."""
    found, now = [], 0
    while now < END and draw(st.booleans()):
        now += draw(st.integers(0, 9))
        length = draw(st.integers(1, 15))
        found.append((now, now + length, draw(st.sampled_from(["mm", "sin", "gelu"]))))
        now += length
    return found


spans = st.tuples(st.integers(0, END), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))
collectives = st.lists(st.tuples(spans, st.sampled_from("ab"), st.sampled_from([None, 0, 1])), min_size=1, max_size=7)


@given(st.lists(lanes(), max_size=3), collectives, lanes(), st.booleans(), st.lists(spans, max_size=4))
def test_a_report_against_every_nanosecond(work, flights, copies, count_copies, waits):
    flights = sorted(flights, key=lambda flight: flight[0])
    found = Trace(
        source="constructed",
        rank=3,
        world_size=None,
        device=CollectiveDevice.CPU,
        collectives=tuple(Collective(kind, *span, lane="gloo", layer=layer) for span, kind, layer in flights),
        work={str(number): lane for number, lane in enumerate(work)},
        copies={"copies": copies},
        waits=union(waits),
    )
    report = overlap(found, count_copies=count_copies)
    busy = [*work, copies] if count_copies else work
    under = [{moment: name for start, end, name in lane for moment in range(start, end)} for lane in busy]
    compute = {moment for lane in under for moment in lane}

    def moments(chosen):
        return {moment for (start, end), _, _ in chosen for moment in range(start, end)}

    def check(part, chosen):
        flight = moments(chosen)
        assert part.communication_ns == len(flight)
        assert part.exposed_ns == len(flight - compute)
        assert part.hidden_ns == len(flight & compute)
        names = Counter(lane[moment] for lane in under for moment in flight if moment in lane)
        assert {hider.name: hider.time_ns for hider in part.hidden_by} == names
        assert [hider.time_ns for hider in part.hidden_by] == sorted(names.values(), reverse=True)

    (rank,) = report.ranks
    assert rank.rank == 3
    check(rank, flights)
    assert rank.compute_ns == len(compute)
    waiting = {moment for start, end in waits for moment in range(start, end)}
    assert rank.waiting_ns == len((moments(flights) - compute) & waiting)
    for one, flight in zip(rank.collectives, flights, strict=True):
        check(one, [flight])
    for part in rank.kinds:
        chosen = [flight for flight in flights if flight[1] == part.name]
        assert part.count == len(chosen)
        check(part, chosen)
    for part in rank.layers:
        check(part, [flight for flight in flights if str("?" if flight[2] is None else flight[2]) == part.name])
    assert {part.name for part in rank.layers} >= {str(layer) for _, _, layer in flights if layer is not None}
    total = len(moments(flights))
    assert report.total.fraction == (len(moments(flights) & compute) / total if total else None)


FARSKIP = [
    annotation("layer 3", 0, 100),
    op("c10d::alltoall_base_", 0, 10),
    gloo("all_to_all", 10, 110),
    op("aten::mm", 20, 60),
    op("graph_0_cpp_fused_gelu_1", 70, 90),
    op("_c10d_functional::wait_tensor", 90, 115),
    op("c10d::allreduce_", 120, 125),
    gloo("all_reduce", 130, 150, OTHER_WORKER),
    op("aten::mm", 140, 200),
]


def test_known_answers():
    (rank,) = overlap(trace(FARSKIP)).ranks
    assert (rank.communication_ns, rank.exposed_ns, rank.compute_ns) == (120_000, 50_000, 120_000)
    assert rank.waiting_ns == 20_000, "of 25 us in the wait, 20 were exposed"
    dispatch, reduce = rank.collectives
    assert (dispatch.kind, dispatch.layer, dispatch.start_ns) == ("all_to_all_single", 3, 10_000 - 10_000)
    assert [(hider.name, hider.time_ns) for hider in dispatch.hidden_by] == [
        ("aten::mm", 40_000),
        ("graph_0_cpp_fused_gelu_1", 20_000),
    ]
    assert (dispatch.exposed_ns, dispatch.fraction) == (40_000, 0.6)
    assert (reduce.kind, reduce.layer, reduce.exposed_ns) == ("all_reduce", None, 10_000)
    assert [part.name for part in rank.layers] == ["3", "?"]


def test_layers_given_in_launch_order():
    (rank,) = overlap(trace(FARSKIP), layers=[7, 8]).ranks
    assert [one.layer for one in rank.collectives] == [7, 8]
    (rank,) = overlap(trace(FARSKIP), layers=[9]).ranks
    assert [one.layer for one in rank.collectives] == [9, 9], "two iterations of one collective"
    with pytest.raises(TraceError, match="2 collectives, which is not a whole number of iterations of 3"):
        overlap(trace(FARSKIP), layers=[1, 2, 3])


def test_what_can_not_be_reported():
    with pytest.raises(NoCollectivesError, match="no collective in constructed"):
        overlap(trace([op("aten::mm", 0, 5)]))
    with pytest.raises(TraceError, match="both of rank 0"):
        overlap([trace(FARSKIP), trace(FARSKIP)])
    with pytest.raises(TraceError, match="no trace"):
        overlap([])
    with pytest.raises(RanksMissingError, match="only one trace"):
        overlap(trace(FARSKIP), subtract_peer_wait=True)
    ranks = [trace(FARSKIP, rank, world_size=4) for rank in (0, 2)]
    with pytest.raises(RanksMissingError, match="no trace of rank 1, 3"):
        overlap(ranks, subtract_peer_wait=True)
    assert overlap(ranks).ranks[0].peer_wait_ns is None


def test_ranks_by_place_where_the_trace_does_not_know():
    report = overlap([trace(FARSKIP, None), trace([op("aten::mm", 0, 1, MAIN)], None)])
    assert [rank.rank for rank in report.ranks] == [0, 1]
    assert "rank 1: no collective is in the trace of this rank." in report.notes
    assert report.to_json()["ranks"][1]["overlap"] is None
