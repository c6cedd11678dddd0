# SPDX-License-Identifier: Apache-2.0
"""Documents of files: kinds, malformed lines, and a split that depends on nothing but the document."""

from __future__ import annotations

import json
import random

import pytest

from farskip_compile import ConfigError
from farskip_compile.healing.texts.documents import read_source, rows
from tests.distill.text_common import chat_line, write_lines


def contents(files, **options) -> list[str]:
    return [row["content"] for row in rows(read_source(files, **options))]


def test_kinds(tmp_path):
    plain = tmp_path / "a.txt"
    plain.write_bytes("one\r\ntwo é\n".encode())
    (tmp_path / "b.md").write_text("three")
    found = list(rows(read_source([plain, tmp_path / "b.md"])))
    assert [(row["content"], row["file"], row["line"]) for row in found] == [
        ("one\r\ntwo é\n", str(plain), 0),
        ("three", str(tmp_path / "b.md"), 0),
    ]
    text = write_lines(tmp_path / "text.jsonl", {"text": "one", "id": 1}, "", {"id": 2, "text": "two"})
    found = list(rows(read_source([text])))
    assert [(row["content"], row["line"]) for row in found] == [("one", 1), ("two", 3)]
    assert contents([text], format="text") == [text.read_text()]
    body = write_lines(tmp_path / "body.json", {"text": "title", "body": "long", "messages": 1})
    assert contents([body], text_field="body") == ["long"]
    pairs = write_lines(tmp_path / "pairs.ndjson", {"completion": "b", "prompt": "a"})
    assert [json.loads(one) for one in contents([pairs])] == [{"prompt": "a", "completion": "b"}]
    line = chat_line("hi", "hello", tools=[{"type": "function"}], source="x")
    chat = write_lines(tmp_path / "chat.txt", line)
    assert [json.loads(one) for one in contents([chat], format="chat")] == [
        {"messages": line["messages"], "tools": line["tools"]}
    ]


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        (['{"text": "a"'], {}, "line 1: not JSON"),
        ([{"text": "a"}, "[1]"], {}, "line 2: list, not a JSON object"),
        ([{"text": "a"}, {"text": "b"}, {"prompt": "a", "completion": "b"}], {}, "line 3: it has no 'text'"),
        ([{"text": "a"}, chat_line("a", "b")], {}, "line 2: it has no 'text', and the data is text"),
        ([{"body": "a"}], {}, "line 1: its keys are 'body'"),
        ([{"text": "a", "messages": []}], {}, "line 1: it has 'text' and 'messages'"),
        ([{"text": 3}], {}, "line 1: 'text' is int, not a string"),
        ([{"text": "a", "body": "b"}, {"text": "a"}], {"text_field": "body"}, "line 2: it has no 'body'"),
        ([{"prompt": "a"}], {}, "line 1: it has no 'completion'"),
        ([{"prompt": ["a"], "completion": "b"}], {}, "line 1: 'prompt' is list"),
        ([{"messages": []}], {}, "line 1: 'messages' is not a list of messages"),
        ([{"messages": [{"content": "a"}]}], {}, "line 1: message 0 has no role"),
        ([{"messages": [{"role": "user", "content": None}]}], {}, "the content of message 0 is not a string"),
        ([{"text": "a"}], {"format": "chat"}, "line 1: it has no 'messages'"),
        ([chat_line("a", "b")], {"format": "chat", "text_field": "body"}, "text_field='body'"),
        (['{"text": "\\ud800"}'], {}, "line 1: half of a surrogate pair"),
        (['{"text": "a", "text": "b"}'], {}, "line 1: not JSON: the key 'text' is there twice"),
        ([""], {}, "has no line"),
        ([{"text": "a"}], {"held_out_fraction": 1.0}, "held_out_fraction=1.0 is not a fraction"),
    ],
)
def test_malformed(tmp_path, lines, options, words):
    file = write_lines(tmp_path / "some.jsonl", *lines)
    with pytest.raises(ConfigError) as error:
        contents([file], **options)
    assert words in error.value.reason
    assert error.value.way_out


def test_files(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        read_source([tmp_path / "none.txt"])
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.txt is not text in UTF-8"):
        contents([tmp_path / "latin.txt"])
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "a"}\n' + '{"text": "é"}'.encode("latin-1"))
    with pytest.raises(ConfigError, match="line 2: not JSON"):
        contents([tmp_path / "latin.jsonl"])
    lines = write_lines(tmp_path / "a.jsonl", {"text": "a"})
    with pytest.raises(ConfigError, match=r"is text and .* is JSON Lines"):
        read_source([lines, tmp_path / "latin.txt"])


def test_the_split_depends_on_the_document_alone(tmp_path):
    texts = [f"document {number}" for number in range(4000)]
    files = [write_lines(tmp_path / "all.jsonl", *({"text": one} for one in texts))]
    split = {"held_out_fraction": 0.05}
    held, train = contents(files, **split, part="held_out"), contents(files, **split, part="train")
    assert sorted(held + train) == sorted(texts)
    assert 150 < len(held) < 250  # 200 are expected; 14 is the standard deviation
    mixed = [*texts[:3000], *texts[:50]]
    random.Random(0).shuffle(mixed)
    parts = [
        write_lines(tmp_path / f"{at}.jsonl", *({"id": at, "body": one} for one in mixed[at::7])) for at in range(7)
    ]
    again = contents(parts, **split, part="held_out", text_field="body")
    assert set(again) == set(held) & set(mixed)  # the same documents, and a document that is there twice is on one side
    assert not set(again) & set(contents(parts, **split, text_field="body"))
    wider = contents(files, held_out_fraction=0.2, part="held_out")
    assert set(held) < set(wider)
    one = write_lines(tmp_path / "one.jsonl", {"text": train[0]})
    with pytest.raises(ConfigError, match="no document on the side 'held_out'"):
        contents([one], **split, part="held_out")
