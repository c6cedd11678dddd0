# SPDX-License-Identifier: Apache-2.0
"""Held-out text in the training text. The oracle: sets of tuples of tokens."""

from __future__ import annotations

import random

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("datasets")

from farskip_compile import ConfigError
from farskip_compile.healing.distill import text_batches
from farskip_compile.healing.texts import contamination
from farskip_compile.healing.texts.contamination import find_overlap, shared_runs
from tests.distill.text_common import PLAIN, chat_line, tokenizer, write_lines

pytestmark = pytest.mark.xdist_group("jobs")


@pytest.mark.parametrize("at_once", [5, 2**20])
def test_shared_runs(monkeypatch, at_once):
    monkeypatch.setattr(contamination, "AT_ONCE", at_once)
    numbers, hits = np.random.default_rng(0), 0
    for trial in range(300):
        run = int(numbers.integers(2, 7))
        train = numbers.integers(0, 4, numbers.integers(0, 60)).astype(np.int32)
        held = numbers.integers(0, 4, numbers.integers(run, 50)).astype(np.int32)
        starts = numbers.random(len(held)) < 0.7
        starts[len(held) - run + 1 :] = False
        cuts = np.sort(numbers.integers(0, len(train) + 1, trial % 5))
        pieces = np.split(train, cuts)
        known = {tuple(train[at : at + run]) for at in range(len(train) - run + 1)}
        wanted = np.zeros(len(held), bool)
        for at in np.nonzero(starts)[0]:
            if tuple(held[at : at + run]) in known:
                wanted[at : at + run] = True
        assert (shared_runs(pieces, held, starts, run) == wanted).all()
        hits += wanted.any() and not wanted.all()
    assert hits > 100


def words(count: int, seed: int) -> str:
    letters = random.Random(seed)
    return " ".join("".join(letters.choices("abcdefghij", k=5)) for _ in range(count))


def overlap(tmp_path, train, held_out, *, run=20, template=None, **options):
    made = tokenizer(template)
    files = [write_lines(tmp_path / f"{name}.jsonl", *lines) for name, lines in (("a", train), ("b", held_out))]
    sizes = {"sequence_length": 32, "batch_size": 1, "shuffle": False}
    return find_overlap(
        text_batches(files[:1], made, **sizes), text_batches(files[1:], made, **sizes, **options), made, run=run
    )


def test_honest_text(tmp_path):
    found = overlap(tmp_path, [{"text": words(300, 0)}], [{"text": words(300, 1)}])
    assert (found.documents, found.duplicates, found.shared, found.whole, found.example) == (1, 0, 0, 0, "")
    found.check(0.0)


def test_a_passage(tmp_path):
    passage, made = words(30, 2), tokenizer()
    train = [{"text": f"{words(200, at)} {passage if at == 7 else ''} {words(50, 50 + at)}"} for at in range(10)]
    held = [{"text": words(100, 1000)}, {"text": f"{words(60, 1001)} {passage} {words(100, 1002)}"}]
    found = overlap(tmp_path, train, held)
    before = len(made(f"{held[0]['text']}")["input_ids"]) + 1 + len(made(words(60, 1001))["input_ids"])
    size = len(made(f" {passage}")["input_ids"])
    assert size > 64
    touched = {at // 32 for at in range(before, before + size)}
    assert (found.duplicates, found.shared) == (0, len(touched))
    assert 0 < found.whole < found.shared
    assert "b.jsonl, line 2: ' " + passage[:20] in found.example
    found.check(found.share)
    with pytest.raises(ConfigError, match=f"^{found.shared} of {found.sequences} held-out sequences") as error:
        found.check()
    assert "allow_overlap" in error.value.way_out
    used = overlap(tmp_path, train, held, limit=before // 32)  # the sequences before it
    assert (used.sequences, used.shared) == (before // 32, 0)
    assert overlap(tmp_path, train, held, run=size + 2).shared == 0


def test_a_document_shorter_than_a_run(tmp_path):
    short = {"text": "a short one"}
    train, held = [{"text": words(100, 0)}, short], [{"text": words(100, 1)}, short, {"text": words(100, 2)}]
    found = overlap(tmp_path, train, held, run=50)
    assert (found.documents, found.duplicates) == (3, 1)
    assert 1 <= found.shared <= 2
    assert "b.jsonl, line 2 and " in found.example
    assert found.example.endswith("a.jsonl, line 2")
    with pytest.raises(ConfigError, match="1 of 3 documents are in both"):
        found.check(0.9)


def test_a_run_ends_with_its_document(tmp_path):
    """The end of one held-out document and the beginning of the next are not a passage of the training text."""
    one, other, end = words(4, 0), words(4, 1), "<end>"
    train = [{"text": f"{words(50, 3)}{one}{end}{other} {words(50, 4)}"}]
    held = [{"text": f"{words(20, 5)}{one}"}, {"text": f"{other} {words(20, 6)}"}]
    made = tokenizer()
    longest = max(len(made(text)["input_ids"]) for text in (one, other))
    assert overlap(tmp_path, train, held, run=longest + 4).shared == 0
    joined = [{"text": f"{words(20, 5)}{one}{end}{other} {words(20, 6)}"}]
    assert overlap(tmp_path, train, joined, run=longest + 4).shared > 0


def test_only_targets_of_conversations_count(tmp_path):
    """A system prompt that all have in common is not a leak; an answer is."""
    system = words(60, 0)
    train = [chat_line(words(5, at), words(15, 100 + at), system=system) for at in range(1, 20)]
    held = [chat_line(words(5, at), words(15, 100 + at), system=system) for at in range(20, 24)]
    assert overlap(tmp_path, train, held, template=PLAIN).shared == 0
    assert overlap(tmp_path, train, held, template=PLAIN, loss_on="all").shared > 0
    held[1] = chat_line("another question", train[3]["messages"][2]["content"], system=system)
    found = overlap(tmp_path, train, held, template=PLAIN)
    assert found.shared > 0
    assert found.duplicates == 0
    assert "b.jsonl, line 2" in found.example
