# SPDX-License-Identifier: Apache-2.0
"""Documents as batches. The oracle: lists of Python that are joined and cut."""

from __future__ import annotations

import logging

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("datasets")

from farskip_compile import ConfigError
from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.healing.causal.batches import IGNORED, as_batch
from farskip_compile.healing.distill import text_batches
from tests.distill.text_common import BARE, MARKED, PLAIN, TEXT, chat_line, tokenizer, write_lines

pytestmark = pytest.mark.xdist_group("jobs")

SIZES = {"sequence_length": 16, "batch_size": 2, "shuffle": False}
END = tokenizer().eos_token_id


def stacked(batches, name="input_ids") -> torch.Tensor:
    return torch.cat([batch[name] if isinstance(batch, dict) else batch for batch in batches])


def cut(tokens: list[int], count: int) -> list[list[int]]:
    return [tokens[at : at + 16] for at in range(0, 16 * count, 16)]


def test_lines_of_text_are_as_files_of_text(tmp_path):
    made, texts = tokenizer(), [TEXT[:500], "", "東京 " * 40, TEXT[500:900]]
    lines = write_lines(tmp_path / "a.jsonl", *({"text": text} for text in texts))
    files = [tmp_path / f"{at}.txt" for at in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    ours, theirs = (text_batches(given, made, **SIZES) for given in ([lines], files))
    whole = [token for text in texts if text for token in [*made(text)["input_ids"], END]]
    assert stacked(ours).tolist() == stacked(theirs).tolist() == cut(whole, len(whole) // 32 * 2)
    assert (ours.counts.documents, ours.counts.dropped, ours.bytes_per_token) == (4, 0, None)


def conversations(count: int) -> list[dict]:
    return [
        chat_line(f"What is {at} times 7? " * (1 + at % 5), f"It is {7 * at}. 🎉", "Thanks", "Not at all", id=at)
        for at in range(count)
    ]


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_conversations_are_packed_with_labels(tmp_path, template, caplog):
    made, lines = tokenizer(template), conversations(30)
    file = write_lines(tmp_path / "a.jsonl", *lines)
    with caplog.at_level(logging.INFO, "farskip_compile"):
        batches = text_batches([file], made, **SIZES, count_bytes=True)
    tokens, labels, sizes = [], [], []
    for line in lines:
        for message in line["messages"]:
            said = made(f"{message['content']}</s>\n")["input_ids"]
            head = made(f"<s>{message['role']}\n")["input_ids"]
            tokens += [*head, *said]
            is_said = message["role"] == "assistant"
            labels += [IGNORED] * len(head) + (said if is_said else [IGNORED] * len(said))
    rows, marks = cut(tokens, len(tokens) // 16), cut(labels, len(tokens) // 16)
    marks = [[IGNORED, *mark[1:]] for mark in marks]
    kept = [at for at, mark in enumerate(marks) if set(mark) != {IGNORED}]
    kept = kept[: len(kept) // 2 * 2]
    assert stacked(batches).tolist() == [rows[at] for at in kept]
    assert stacked(batches, "labels").tolist() == [marks[at] for at in kept]
    without = sum(set(mark) == {IGNORED} for mark in marks)
    assert without > 0
    assert batches.counts.dropped == without
    assert f"{without} of {len(rows)} sequences are left out" in caplog.text
    assert f"30 documents, {len(kept)} sequences ({without} without a target are left out)" in str(batches.counts)
    targets = [token for at in kept for token in marks[at] if token != IGNORED]
    assert batches.counts.targets == len(targets) == sum(as_batch(one, torch.device("cpu")).tokens for one in batches)
    sizes = [len(made.convert_ids_to_tokens(token)) for token in targets if token not in made.all_special_ids]
    # the character of four bytes belongs to its first token: sequences that end inside of it count all or nothing
    assert abs(batches.counts.bytes - sum(sizes)) <= 3 * len(kept)
    assert batches.bytes_per_token == batches.counts.bytes / batches.counts.targets
    every = text_batches([file], made, **SIZES, loss_on="all")
    assert isinstance(next(iter(every)), torch.Tensor)
    assert stacked(every).tolist() == cut(tokens, len(rows) // 2 * 2)
    assert every.counts.targets == 15 * every.counts.sequences


def test_the_first_token_of_a_document_is_not_a_target(tmp_path):
    """Nothing but another document stands before it."""
    chat = write_lines(tmp_path / "chat.jsonl", *(chat_line(f"{at}bc", "de") for at in range(30)))
    made = tokenizer(BARE)
    labels, ids = (stacked(text_batches([chat], made, **SIZES), name) for name in ("labels", "input_ids"))
    digits = {made.convert_tokens_to_ids(str(digit)) for digit in range(10)}
    firsts = torch.tensor([[token in digits for token in row] for row in ids.tolist()])
    firsts[:, 1:] &= ~firsts[:, :-1]  # the second digit of a number is a target
    assert firsts[:, 1:].sum() > 10
    assert (labels[firsts] == IGNORED).all()
    firsts[:, 0] = True
    assert torch.equal(labels[~firsts], ids[~firsts])
    pairs = write_lines(tmp_path / "pairs.jsonl", *({"prompt": "", "completion": "xyz"} for _ in range(30)))
    batches = text_batches([pairs], made, **SIZES)
    labels, ids = stacked(batches, "labels"), stacked(batches)
    after_end = torch.cat([torch.ones(len(ids), 1, dtype=torch.bool), ids[:, :-1] == END], 1)
    assert torch.equal(labels == IGNORED, after_end)


def test_bytes_of_text_are_those_of_what_is_evaluated(tmp_path):
    made = tokenizer()
    text = TEXT[:2000].encode("ascii", "ignore").decode()
    (tmp_path / "a.txt").write_text(text)
    batches = text_batches([tmp_path / "a.txt"], made, **{**SIZES, "batch_size": 3}, limit=8, count_bytes=True)
    assert batches.counts.sequences == 6  # of the 8, two do not fill a batch
    rows = stacked(batches)
    assert len(rows) == 6
    said = sum(len(made.decode(row[1:])) for row in rows.tolist())
    assert (batches.counts.bytes, batches.counts.targets) == (said, 6 * 15)


def test_each_rank_has_its_part(tmp_path):
    made, file = tokenizer(), tmp_path / "a.txt"
    file.write_text(TEXT[:2000])
    rows = stacked(text_batches([file], made, **{**SIZES, "batch_size": 1}, count_bytes=True)).tolist()
    with fake_ranks(2):
        batches = text_batches([file], made, **SIZES, limit=11, count_bytes=True)
        assert stacked(batches).tolist() == rows[0:8:2]
        assert batches.counts.sequences == 8  # of both ranks, in whole batches
        assert batches.counts.bytes == sum(len(made.decode(row[1:]).encode()) for row in rows[:8])
        with pytest.raises(ConfigError, match=r"3 sequences of 16 tokens, .* of 2 on 2 ranks"):
            text_batches([file], made, **SIZES, limit=3)


def test_the_split(tmp_path):
    made = tokenizer()
    texts = [f"{at} {TEXT[at * 20 : at * 20 + 40]}" for at in range(200)]
    file = write_lines(tmp_path / "a.jsonl", *({"text": text} for text in texts))
    parts = [text_batches([file], made, **SIZES, held_out_fraction=0.3, part=part) for part in ("train", "held_out")]
    found = [{made.decode(ids[:-1]) for ids in part.tokens["input_ids"]} for part in parts]
    assert not found[0] & found[1]
    assert found[0] | found[1] == {*texts}
    assert 35 < len(found[1]) < 85


def test_a_changed_file_is_read_again(tmp_path):
    made, file = tokenizer(), tmp_path / "a.txt"
    for text in (TEXT[:700], TEXT[700:1400]):
        file.write_text(text)
        assert made.decode(stacked(text_batches([file], made, **SIZES)).flatten()) in text


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        ([{"text": TEXT[:500]}], {"loss_on": "assistant"}, "the data is text"),
        ([{"text": "short"}], {}, "less than one batch"),
        ([chat_line("a", "b")], {}, "less than one batch"),
        ([chat_line("a " * 90)], {}, r"0 sequences of 16 tokens, and \d+ without a target"),
        ([chat_line("a", "b")] * 9 + ["{"], {}, r"a\.jsonl, line 10: not JSON"),
        ([chat_line("a", "b")] * 9 + [chat_line("a", "raise")], {}, r"a\.jsonl, line 10: the chat template refuses"),
    ],
)
def test_refused(tmp_path, lines, options, words):
    made = tokenizer("{% if messages[-1].content == 'raise' %}{{ raise_exception('no') }}{% endif %}" + PLAIN)
    file = write_lines(tmp_path / "a.jsonl", *lines)
    with pytest.raises(ConfigError, match=words):
        text_batches([file], made, **SIZES, **options)
