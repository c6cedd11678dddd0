# SPDX-License-Identifier: Apache-2.0
"""Held-out text that is in the training text, too: a model that has seen it is judged too well.

In:    the training text and the held-out text, as `TextBatches` of one tokenizer.
Out:   `TextOverlap`: how many held-out documents are training documents, and how many held-out sequences share a run of
       tokens with the training text; `check` refuses what is above a limit.
Never: holds the training text in memory, or looks at it twice.

What counts:
- a held-out document whose content is that of a training document, whatever its length;
- a run of `run` consecutive tokens of one held-out document, anywhere in the training text. Where targets are masked,
  only runs of targets count: a system prompt that all conversations have in common is not a leak.
A held-out sequence shares text if at least one of its tokens is in such a document or run. Runs of 13 tokens, by which
benchmarks are compared, are common in honest text; 50 tokens are a paragraph.

Steps:
1. Hash every run of the held-out text that counts: 64 bits, polynomial, of scrambled token ids.
2. Pass over the training text once, some documents at a time: hash each run, and look it up. A table of bits by the
   first bits of the hash answers most look-ups; the rest are searched for.
3. Mark the tokens of each held-out run that was found, then count sequences.

Time is linear in both texts: about 10 s for 100 million tokens on one core. Memory is 65 bytes for each held-out token.
Two runs that differ have the same hash with a probability of 2^-64: with 10^7 held-out and 10^10 training tokens, one
such pair is expected in 200 checks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farskip_compile.errors import ConfigError
from farskip_compile.healing.texts.documents import place
from farskip_compile.healing.texts.loaders import TextBatches, token_chunks

RUN = 50
"""Tokens."""
LIMIT = 0.01
"""Of the held-out sequences: licences and tables are repeated in honest text."""
WAY_OUT = "remove it from one of them, held_out_fraction = 0.02 instead of held_out, or allow_overlap = true"

Hashes = NDArray[np.uint64]
AT_ONCE = 2**20
"""Training tokens whose hashes are in memory together."""
BASE = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2^64."""


@dataclass(frozen=True)
class TextOverlap:
    """What held-out text and training text have in common."""

    run: int
    """Tokens of a run."""
    documents: int
    """Held-out documents that are compared."""
    duplicates: int
    """Of them: equal to a training document."""
    sequences: int
    """Held-out sequences."""
    shared: int
    """Of them: with a token in a duplicate or in a run that is in the training text."""
    whole: int
    """Of these: all targets are."""
    example: str = ""
    """The first of what was found, and where; empty: nothing."""

    @property
    def share(self) -> float:
        """Of the held-out sequences that share text."""
        return self.shared / self.sequences

    def __str__(self) -> str:
        return (
            f"{self.shared} of {self.sequences} held-out sequences ({self.share:.1%}) share {self.run} tokens or a "
            f"document with the training text, {self.whole} of them as a whole; {self.duplicates} of {self.documents} "
            "documents are in both"
        )

    def check(self, limit: float = LIMIT) -> None:
        """A `ConfigError` if a document is in both texts, or more than `limit` of the held-out sequences share text."""
        if self.duplicates or self.share > limit:
            raise ConfigError(f"{self}; the limit is {limit:.1%}, and no document. {self.example}", way_out=WAY_OUT)


def find_overlap(train: TextBatches, held_out: TextBatches, tokenizer: Any, *, run: int = RUN) -> TextOverlap:
    """What the sequences of `held_out` that are used have in common with all of the training text.

    Args:
        train: of `text_batches`.
        held_out: likewise.
        tokenizer: with which both were made; quotes what was found.
        run: tokens in a row that count as shared, at least 2.

    Returns:
        Counts, of which `share` is the fraction of held-out sequences, with the first example; `check` refuses them.
    """
    held = _read(held_out)
    digests, found = {*held.digests}, set()
    for batch in train.tokens.select_columns(["digest"]).iter(1000):
        found |= digests.intersection(batch["digest"])
    twins = np.array([digest in found for digest in held.digests], bool)
    in_run = shared_runs(token_chunks(train.tokens), held.tokens, _runs(held, run), run)
    shared = in_run | (np.repeat(twins, held.lengths) & held.is_target)
    example = ""
    if twins.any():
        first = int(twins.argmax())
        rows = train.tokens.select_columns(["digest", "file", "line"])
        other = next(row for row in rows if row["digest"] == held.digests[first])
        example = f"In both: {held.places[first]} and {place(other['file'], other['line'])}"
    elif in_run.any():
        at = int(in_run.argmax())
        document = int(np.searchsorted(np.cumsum(held.lengths), at, side="right"))
        example = f"In both, from {held.places[document]}: {tokenizer.decode(held.tokens[at : at + run])[:200]!r}"
    length = held_out.sequence_length
    of_sequence = shared.reshape(-1, length)[held_out.used]
    unshared = (held.is_target & ~shared).reshape(-1, length)[held_out.used]
    any_shared: NDArray[np.bool_] = np.any(of_sequence, 1)
    return TextOverlap(
        run=run,
        documents=len(twins),
        duplicates=int(twins.sum()),
        sequences=len(any_shared),
        shared=int(any_shared.sum()),
        whole=int((any_shared & ~np.any(unshared, 1)).sum()),
        example=example,
    )


def shared_runs(
    train: Iterable[NDArray[Any]], held: NDArray[Any], starts: NDArray[np.bool_], run: int
) -> NDArray[np.bool_]:
    """For each token of `held` [N], whether it is in a run that is in the training text, too.

    Args:
        train: token ids of the training text, in pieces of any length; a run may cross from one to the next.
        held: token ids of the held-out text.
        starts: [N]; the runs that are looked for begin at these tokens. None begins among the last `run - 1`.
    """
    at = np.nonzero(starts)[0]
    if not len(at):
        return np.zeros(len(held), bool)
    hashes = np.concatenate([*_hashes([held], run)])[at]
    known, which = np.unique(hashes, return_inverse=True)
    seen = np.zeros(len(known), bool)
    bits = int(np.clip(np.ceil(np.log2(8 * len(known))), 10, 30))
    table, shift = np.zeros(2**bits, bool), np.uint64(64 - bits)
    table[known >> shift] = True
    for some in _hashes(train, run):
        some = some[table[some >> shift]]
        where = np.minimum(np.searchsorted(known, some), len(known) - 1)
        seen[where[known[where] == some]] = True
    change = np.zeros(len(held) + 1, np.int64)
    first = at[seen[which]]
    np.add.at(change, first, 1)
    np.add.at(change, first + run, -1)
    return np.cumsum(change[:-1]) > 0


def _hashes(pieces: Iterable[NDArray[Any]], run: int) -> Iterator[Hashes]:
    """Hashes of all runs of the tokens that the pieces make up, in order: of N tokens, N - run + 1."""
    powers, inverse = _powers(AT_ONCE + run)
    rest = np.zeros(0, np.uint64)
    for piece in pieces:
        for begin in range(0, len(piece), AT_ONCE):
            rest = np.concatenate([rest, _scrambled(piece[begin : begin + AT_ONCE])])
            if (count := len(rest) - run + 1) > 0:
                sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(rest * powers[: len(rest)])])
                yield (sums[run:] - sums[:-run]) * inverse[:count]
                rest = rest[count:]


@functools.cache
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """The powers 0, 1, ... of the base and of its inverse; all modulo 2^64."""
    base, inverse = np.uint64(BASE), np.uint64(pow(BASE, -1, 2**64))
    ups, downs = (np.full(count, factor) for factor in (base, inverse))
    ups[0] = downs[0] = 1
    return np.cumprod(ups), np.cumprod(downs)


def _scrambled(tokens: NDArray[Any]) -> Hashes:
    """64 bits that look random, for each token id (splitmix64)."""
    found = (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(BASE)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        found = (found ^ (found >> np.uint64(shift))) * np.uint64(factor)
    return found ^ (found >> np.uint64(31))


@dataclass(frozen=True)
class _Held:
    """The held-out text as far as it is used: whole sequences, one after another."""

    tokens: NDArray[np.int32]
    """[N]"""
    is_target: NDArray[np.bool_]
    """[N]; where nothing is masked, all are."""
    lengths: NDArray[np.int64]
    """Of the documents, in tokens; the last one may be cut. Their sum is N."""
    digests: list[str]
    places: list[str]


def _read(held_out: TextBatches) -> _Held:
    size = (int(held_out.used[-1]) + 1) * held_out.sequence_length
    masked = "is_target" in held_out.tokens.column_names
    tokens = _first(token_chunks(held_out.tokens), size)
    is_target = _first(token_chunks(held_out.tokens, "is_target"), size) if masked else np.ones(size, bool)
    lengths: list[int] = []
    digests, places, left = [], [], size
    for row in held_out.tokens:
        if left <= 0:
            break
        lengths.append(min(len(row["input_ids"]), left))
        left -= lengths[-1]
        digests.append(row["digest"])
        places.append(place(row["file"], row["line"]))
    return _Held(tokens, is_target.astype(bool), np.array(lengths), digests, places)


def _first(pieces: Iterable[NDArray[Any]], size: int) -> NDArray[Any]:
    """The first `size` tokens."""
    found, count = [], 0
    for piece in pieces:
        found.append(piece)
        if (count := count + len(piece)) >= size:
            break
    return np.concatenate(found)[:size]


def _runs(held: _Held, run: int) -> NDArray[np.bool_]:
    """[N]: whether `run` targets of one document begin here."""
    size = len(held.tokens)
    document = np.repeat(np.arange(len(held.lengths)), held.lengths)
    sums = np.concatenate([[0], np.cumsum(held.is_target)])
    starts = np.zeros(size, bool)
    if size >= run:
        starts[: size - run + 1] = (document[run - 1 :] == document[: size - run + 1]) & (
            sums[run:] - sums[:-run] == run
        )
    return starts
