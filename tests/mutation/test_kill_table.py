# SPDX-License-Identifier: Apache-2.0
"""Every fault is noticed, and what is right passes every checker."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from farskip_compile import testing
from farskip_compile.compiler.ranks import stale
from tests.mutation import run_faults
from tests.mutation.bench import fake_ranks_if, rewired
from tests.mutation.models import BASES, DECODING, DENSE_FIRST, PLAIN, REDUCING, Base
from tests.mutation.order_bench import GRAPHS, judged
from tests.mutation.order_bench import fresh as fresh_graph
from tests.mutation.table import PARTS, judge

NAMED = """MoE reads x + a; attention reads x; n misses s; n includes r; streams swapped; off-by-one range; export rule
forgotten; dense layer not parallel; final norm reads n; a term added twice; a term lost; wait before launch; wait
dropped; launch order different on one rank; buffer reused in flight; stale cache artifact after a config change;
backward left unscheduled; in-place add on a shared residual; reads changed outside the region; coefficients ignored;
cache write moved"""


@pytest.mark.parametrize("part", PARTS)
def test_every_fault_is_noticed(part: str) -> None:
    rows = list(judge(part))
    print(f"\n{part}\n" + "\n".join(row.text() for row in rows))
    survivors = [row.fault.name for row in rows if row.verdict is None]
    assert not survivors, f"{len(rows) - len(survivors)} of {len(rows)} faults were noticed"


def test_the_proof_itself_sees_every_fault_of_the_reader() -> None:
    """Detection and the proof share the reader: a fault in it must stop the compile, and not only fail a test."""
    judges = {row.fault.name: row.verdict.by if row.verdict else "" for row in judge("the reader of the table")}
    assert len(judges) >= 5
    assert set(judges.values()) == {"verify"}, judges


def test_all_that_people_get_wrong_is_among_them() -> None:
    names = [fault.name for faults in PARTS.values() for fault in faults]
    assert len(names) >= 40
    assert [name for name, count in Counter(names).items() if count > 1] == []
    for name in NAMED.replace("\n", " ").split("; "):
        assert [one for one in names if name.lower() in one.lower()], name


@pytest.mark.parametrize("name", BASES)
def test_the_right_graph_passes(name: str) -> None:
    rewired(BASES[name]).verify()


@pytest.mark.parametrize(
    ("base", "wish", "layers"),
    [
        (PLAIN, "full", None),
        (PLAIN, "full", (1, 2)),
        (PLAIN, "attention", None),
        (DENSE_FIRST, "full", None),
        (DECODING, "full", None),
        (REDUCING, "full", None),
    ],
)
def test_the_right_model_passes(base: Base, wish: Any, layers: Any) -> None:
    with fake_ranks_if(base.reduces):
        testing.assert_rewired(base.make(), *base.inputs(), connectivity=wish, layers=layers)


def test_the_right_merge_passes() -> None:
    rewired(REDUCING, merge=True).verify()


@pytest.mark.parametrize("name", GRAPHS)
def test_the_right_order_passes(name: str) -> None:
    assert judged(fresh_graph(name)) is None


def test_the_right_kernels_pass() -> None:
    run_faults.kernel_verdicts()  # checks that


def test_ranks_that_agree_pass() -> None:
    assert run_faults.compare(run_faults.announced(), run_faults.announced()) == [None, None]


def test_an_artifact_that_was_asked_for_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stale, "_requested", {})
    identity, common = run_faults.compile_for()
    artifact = replace(run_faults.announced(common=common), identity=identity)
    stale.refuse_stale(artifact)  # nothing was asked for: the graph came as a package
    stale.expect(identity, common)
    stale.refuse_stale(artifact)


def test_a_scheduled_backward_passes() -> None:
    assert run_faults.overlaps() is None
