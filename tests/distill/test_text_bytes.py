# SPDX-License-Identifier: Apache-2.0
"""Bytes of the text that tokens stand for. The oracle: a byte-level token is written with one character per byte."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("transformers")

from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from farskip_compile.healing.texts.text_bytes import bytes_before, bytes_by_token
from tests.distill.text_common import TEXT, tokenizer

MADE = tokenizer()
MIXED = "Größe: 東京 🎉🎉\n\n  naïve  \t" + TEXT[:300] + " \n "


@given(st.text(max_size=40))
@example("\x7f\x80\u07ff\u0800\uffff\U00010000")
def test_bytes_before(text):
    assert bytes_before(text).tolist() == [len(text[:at].encode()) for at in range(len(text) + 1)]


@given(st.one_of(st.just(MIXED), st.text(max_size=60)))
def test_each_byte_once(text):
    ids = MADE(text, add_special_tokens=False)["input_ids"]
    found = bytes_by_token(MADE, text)
    assert len(found) == len(ids)
    assert (found >= 0).all()
    assert found.sum() == len(text.encode())
    exact = [len(token) for token in MADE.convert_ids_to_tokens(ids)]
    ours, theirs = itertools.accumulate(found.tolist()), itertools.accumulate(exact)
    ends = {len(text[:at].encode()) for at in range(len(text) + 1)}  # a token may end inside of a character
    for mine, real in zip(ours, theirs, strict=True):
        assert mine == min(end for end in ends if end >= real)


def test_special_tokens_stand_for_no_byte():
    text = "<s>user\nGrüße \n</s>\n<s>assistant\n🎉</s>"
    ids = MADE(text, add_special_tokens=False)["input_ids"]
    found = bytes_by_token(MADE, text)
    names = MADE.convert_ids_to_tokens(ids)
    assert {count for name, count in zip(names, found.tolist(), strict=True) if name in ("<s>", "</s>")} == {0}
    assert found.sum() == len("user\nGrüße \n\nassistant\n🎉".encode())


def test_characters_that_no_token_holds():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "ä": 1, "b": 2}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert bytes_by_token(PreTrainedTokenizerFast(tokenizer_object=words), " ä  b ?? ").tolist() == [3, 3, 4]

    class Empty:
        """A tokenizer with a token that holds nothing, and says so with the place 0."""

        all_special_ids: tuple[int, ...] = ()

        def __call__(self, text, **options):
            return {"input_ids": [5, 6, 7], "offset_mapping": [(0, 2), (0, 0), (2, 3)]}

    assert bytes_by_token(Empty(), "abc").tolist() == [2, 0, 1]
    trimmed = tokenizer()
    trimmed.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    text = "  two   words \n\n"
    assert trimmed(text, return_offsets_mapping=True)["offset_mapping"][-1][0] > 13  # it counts no space as held
    found = bytes_by_token(trimmed, text).tolist()
    assert found[2:] == bytes_by_token(MADE, text).tolist()[2:]
    assert sum(found) == len(text)
    assert bytes_by_token(MADE, "").tolist() == []
