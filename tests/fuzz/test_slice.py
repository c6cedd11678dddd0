# SPDX-License-Identifier: Apache-2.0
"""Some of the fuzzing, always the same, in each run of the tests; the whole of it is `make fuzz`."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.economy import examples
from tests.fuzz.batch import Chunk, chunks, run_chunk
from tests.fuzz.checks import KINDS
from tests.fuzz.edits import EDITS

SLICE = {
    "graphs": examples(24),
    "spoiled": examples(96),
    "architectures": examples(6),
    "styles": examples(10),
    "streams": examples(60),
    "models": examples(6),
    "stacks": examples(12),
    "parts": examples(12),
    "sessions": examples(10),
}
SEED = 20_251_111
LEAST = {
    "graphs": (0.8, 0.98, 0.3),
    "spoiled": (0.7, 0.5, 0.15),
    "architectures": (0.8, 0.98, 0.3),
    "styles": (0.8, 0.3, 0.3),
    "streams": (0.8, 0.15, 0.15),
    "models": (0.5, 0.1, 0.1),
    "stacks": (0.5, 0.1, 0.1),
    "parts": (0.5, 0.1, -1.0),
    "sessions": (0.4, 0.1, 0.1),
}
"""Parts that must differ from all before, be accepted, and be rewired to `full`: neither one example again and again,
nor refusals, which meet every demand. Most parts of a model are refused."""


@pytest.mark.parametrize("chunk", chunks(SLICE, SEED), ids=lambda chunk: f"{chunk.kind}-{chunk.number}")
def test_every_demand_is_met(chunk: Chunk) -> None:
    result = run_chunk(chunk)
    assert not result.failures, [f"{f.error}\n{f.example}" for f in result.failures]
    assert result.ran == chunk.examples
    distinct, accepted, rewired = LEAST[chunk.kind]
    assert len(result.seen) > distinct * chunk.examples
    assert result.counts["accepted"] > accepted * result.ran
    assert result.counts["full: rewired"] > rewired * result.ran


def test_the_examples_follow_from_the_seed() -> None:
    chunk = Chunk("graphs", 7, 0, 5)
    first, again, other = run_chunk(chunk), run_chunk(chunk), run_chunk(Chunk("graphs", 8, 0, 5))
    assert first.seen == again.seen != other.seen
    assert first.counts == again.counts


def test_a_failure_is_found_shrunk_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that fails for three blocks or more: each failure shrinks to the same example, and the chunk goes on."""

    def check(example) -> Counter[str]:
        assert len(example.network.blocks) < 3, "too many blocks"
        return Counter({"accepted": 1})

    monkeypatch.setitem(KINDS, "graphs", type(KINDS["graphs"])(KINDS["graphs"].strategy, check, 30))
    result = run_chunk(Chunk("graphs", 1, 0, 30))
    assert result.failures
    assert all("too many blocks" in failure.error for failure in result.failures)
    (smallest,) = {failure.example for failure in result.failures}
    assert smallest.count("Block(") == 2 * 4  # they stand in two lists; a layer adds two at once


def test_time_that_is_over_stops_a_chunk() -> None:
    result = run_chunk(Chunk("graphs", 1, 0, 30), deadline=0.0)
    assert (result.ran, result.complete, result.failures) == (0, False, [])


def test_chunks_hold_each_kind_from_the_beginning() -> None:
    made = chunks({"graphs": 250, "spoiled": 0, "architectures": 60}, 3)
    assert Counter(chunk.kind for chunk in made) == {"graphs": 3, "architectures": 3}
    assert {chunk.kind for chunk in made[:2]} == {"graphs", "architectures"}
    assert sum(chunk.examples for chunk in made if chunk.kind == "graphs") == 250


def test_each_edit_says_what_it_does() -> None:
    """Names appear in the table of counts."""
    assert len(EDITS) >= 25
    assert all(name.islower() for name in EDITS)
