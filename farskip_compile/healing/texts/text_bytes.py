# SPDX-License-Identifier: Apache-2.0
"""How many bytes of the text each token stands for, for bits per byte.

In:    a text; a tokenizer of `transformers` that says which characters a token holds (all of the library `tokenizers`).
Out:   bytes for each token of the text.
Never: counts a byte twice or not at all: over a whole document, the sum is the length of its text in UTF-8, without
       special tokens.

Definition: bits per byte = nats over all targets / ln 2 / bytes of the text that these targets stand for. Special
tokens (end of text, marks of a chat template) are targets as others are, and stand for no byte. A character that is
cut into several tokens belongs to the first of them; a character that no token holds (white space that a tokenizer
leaves out, or does not count as a part of the token) belongs to the next token, at the end of the text to the last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def counts_bytes(tokenizer: Any) -> bool:
    """Whether `tokenizer` says which characters a token holds."""
    return bool(getattr(tokenizer, "is_fast", False))


def bytes_by_token(tokenizer: Any, text: str) -> NDArray[np.int32]:
    """For each token of `text`, without special tokens around it, the bytes that it stands for: [tokens]."""
    found = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    ids = np.asarray(found["input_ids"], np.int64)
    if not len(ids):
        return np.zeros(0, np.int32)
    before = bytes_before(text)
    offsets = np.asarray(found["offset_mapping"], np.int64)
    ends = np.maximum.accumulate(offsets[:, 1])
    special = np.isin(ids, special_tokens(tokenizer))
    if not special[-1]:
        ends[-1] = len(text)
    starts = np.concatenate([[0], ends[:-1]])
    own = np.where(special, before[ends] - before[np.clip(offsets[:, 0], starts, ends)], 0)
    return (before[ends] - before[starts] - own).astype(np.int32)


def bytes_before(text: str) -> NDArray[np.int64]:
    """For each character, the bytes in UTF-8 of those before it; then those of all: [characters + 1]."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes)])


def special_tokens(tokenizer: Any) -> list[int]:
    """Ids of the tokens that stand for no text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return [*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)]
