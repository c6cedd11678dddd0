# SPDX-License-Identifier: Apache-2.0
"""Golden traces: the times computed by hand are the times that are reported, and all is called by its name."""

from __future__ import annotations

import pytest

from farskip_compile.measure.profiling import OverlapReport, overlap
from farskip_compile.measure.profiling.data import CollectiveDevice
from tests.profiling.golden import GOLDEN, Golden
from tests.profiling.nsys_files import NSYS, write_nsys
from tests.profiling.traces import trace


def check(report: OverlapReport, golden: Golden) -> None:
    (rank,) = report.ranks
    assert report.device is CollectiveDevice.GPU
    assert (rank.communication_ns, rank.exposed_ns) == tuple(1000 * time for time in golden.total)
    kinds = {one.name: (one.count, one.communication_ns // 1000, one.exposed_ns // 1000) for one in rank.kinds}
    assert kinds == golden.kinds
    assert len(report.notes) == len(golden.notes), report.notes
    for note, begins in zip(report.notes, golden.notes, strict=True):
        assert note.startswith(begins)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    golden = GOLDEN[name]
    check(overlap(trace(golden.events)), golden)


def test_golden_export_of_nsight_systems(tmp_path) -> None:
    from farskip_compile.measure.profiling import read_trace

    check(overlap(read_trace(write_nsys(tmp_path / "profile.sqlite", NSYS.rows))), NSYS.golden)


def test_groups_of_the_launching_side() -> None:
    """A kernel whose arguments say nothing has the group of its record."""
    first = trace(GOLDEN["nccl without arguments"].events).collectives[0]
    assert (first.group, first.ranks, first.lane) == ("3", tuple(range(8)), "ep (GPU 0 stream 31)")
