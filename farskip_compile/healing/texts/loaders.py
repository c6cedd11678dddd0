# SPDX-License-Identifier: Apache-2.0
"""Files of text or of conversations as batches of token ids.

In:    files (`documents` says which), a tokenizer of `transformers`, a length and a batch size.
Out:   `TextBatches`, a `DataLoader`: shuffled anew in each epoch, each rank with its own part; every batch has the same
       shape. It knows how many targets there are, and how many bytes of text they stand for.
Never: pads; reorders documents. `datasets` caches tokens and sequences on disk, so memory does not grow with the text,
       but for one document.

Steps:
1. Tokenize: text is followed by the tokenizer's end-of-text token, if it has one, and so is a completion; a
   conversation ends as its template says. An empty text adds nothing.
2. Pack: documents follow one another, and are cut into sequences wherever these end; what is left at the end is
   dropped.
3. Mask (`loss_on = "assistant"`): only what the assistant says, or the completion, is a target. The first token of a
   document is not one, since what stands before it is another document. Sequences without targets are left out, and
   counted. Without a mask (`"all"`), each token but the first of its sequence is a target.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler, SequentialSampler

from farskip_compile._compat.distributed import world_group
from farskip_compile.base.choices import LossOn
from farskip_compile.base.extras import need
from farskip_compile.errors import ConfigError, FarSkipError
from farskip_compile.healing.causal.batches import IGNORED
from farskip_compile.healing.texts import chat, documents, text_bytes
from farskip_compile.healing.texts.documents import DocumentKind, Format, TextSource, TextUse, place, read_source, rows
from farskip_compile.text_utils import amount

DOCUMENTS_AT_ONCE = 64
"""Documents whose tokens are in memory together."""

log = logging.getLogger("farskip_compile")


@dataclass(frozen=True)
class TextCounts:
    """What the sequences of all ranks hold."""

    documents: int
    """Of the files; not all are used if there is a limit of sequences."""
    sequences: int
    """That are used."""
    dropped: int
    """Sequences without a target, which are not."""
    targets: int
    """In the sequences that are used."""
    bytes: int | None
    """Of the text in UTF-8 that the targets stand for (`text_bytes`); None: not asked for, or not known."""

    def __str__(self) -> str:
        dropped = f" ({self.dropped:,} without a target are left out)" if self.dropped else ""
        parts = (amount(self.documents, "document"), amount(self.sequences, "sequence") + dropped)
        return f"{', '.join(parts)}, {amount(self.targets, 'target')}"


class TextBatches(DataLoader[Any]):
    """Batches of token ids [B, T]; where targets are masked, mappings of `input_ids` and `labels` [B, T]."""

    def __init__(
        self, tokens: Any, sequences: Any, used: NDArray[np.int64], counts: TextCounts, batch_size: int, shuffle: bool
    ) -> None:
        self.tokens = tokens
        """The documents: a `datasets.Dataset` with `input_ids`, perhaps `is_target`, `digest`, `file`, `line`."""
        self.used = used
        """Which of the sequences that the documents are cut into are used: numbers from 0, in order."""
        self.counts = counts
        self.sequence_length = len(sequences[0]["input_ids"])
        chosen = sequences.select(used)
        sampler: Sampler[int]
        if _ranks() > 1:
            sampler = DistributedSampler(chosen, shuffle=shuffle, drop_last=True)
        else:
            sampler = RandomSampler(chosen) if shuffle else SequentialSampler(chosen)
        columns = [name for name in ("input_ids", "labels") if name in chosen.column_names]
        super().__init__(
            chosen.with_format("torch", columns=columns),
            batch_size=batch_size,
            sampler=sampler,
            drop_last=True,
            collate_fn=_stacked,
        )

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of text over targets, of all ranks: bits per byte = nats per target / ln 2 / this. None: not known."""
        return self.counts.bytes / self.counts.targets if self.counts.bytes is not None else None


def text_batches(
    files: Many[str | Path],
    tokenizer: Any,
    *,
    sequence_length: int,
    batch_size: int,
    shuffle: bool = True,
    limit: int | None = None,
    format: Format | None = None,
    text_field: str | None = None,
    loss_on: LossOn | None = None,
    held_out_fraction: float | None = None,
    part: TextUse = "train",
    count_bytes: bool = False,
) -> TextBatches:
    """Batches of token ids [batch_size, sequence_length]; with a mask, mappings of `input_ids` and `labels`.

    Args:
        files: in UTF-8: text, one document each; or JSON Lines (`documents` has the kinds).
        tokenizer: of `transformers`.
        batch_size: on each rank.
        shuffle: in another order in each epoch.
        limit: number of sequences that are used; None: all.
        format: "text", "jsonl" or "chat"; None: by the suffix of the files, of JSON Lines by the first line.
        text_field: the key of the text in JSON Lines, "text" if not given.
        loss_on: "assistant": targets are what the assistant says, or completions; "all": every token. None: the
            former for conversations and completions, the latter for text.
        held_out_fraction: of the documents, that are held out by the hash of their content; None: no split.
        part: which side of the split.
        count_bytes: so that `bytes_per_token` is known, if the tokenizer is one of the library `tokenizers`.

    Raises:
        MissingPackageError: `datasets` is not installed.
        ConfigError: a file is missing, a line is malformed, the chat template does not show what the
            assistant says, or there is too little text for one batch.
    """
    need("text", "datasets")
    source = read_source(files, format, text_field, held_out_fraction, part)
    if loss_on is None:
        loss_on = "assistant" if source.kind in ("chat", "pairs") else "all"
    elif loss_on == "assistant" and source.kind not in ("chat", "pairs"):
        raise ConfigError('loss_on="assistant", and the data is text', way_out='conversations, or loss_on = "all"')
    chat.check_tokenizer(tokenizer, source.kind, loss_on)
    count_bytes = count_bytes and text_bytes.counts_bytes(tokenizer)
    tokens = _tokens(source, tokenizer, loss_on, count_bytes)
    sequences = _generated(_packed, {"tokens": tokens, "length": sequence_length, "code": _code()}, tokens)
    targets, sizes = _column(sequences, "targets"), _column(sequences, "bytes")
    used = np.nonzero(targets)[0][:limit]
    dropped = int((targets == 0).sum())
    ranks = _ranks()
    if len(used) < batch_size * ranks:
        without = f", and {dropped} without a target" if dropped else ""
        raise ConfigError(
            f"the text has {len(used)} sequences of {sequence_length} tokens{without}, which is less than one batch of "
            f"{batch_size} on {ranks} ranks",
            way_out="more text, shorter sequences or smaller batches",
        )
    if dropped:
        log.info("%d of %d sequences are left out: they have no target", dropped, len(targets))
    if not shuffle:  # the batches are the same each time, so what they leave out can be said
        used = used[: len(used) // ranks // batch_size * batch_size * ranks]
    size = int(sizes[used].sum()) if count_bytes else None
    counts = TextCounts(len(tokens), len(used), dropped, int(targets[used].sum()), size)
    return TextBatches(tokens, sequences, used, counts, batch_size, shuffle)


def token_chunks(tokens: Any, column: str = "input_ids") -> Iterator[NDArray[Any]]:
    """What a column has for all tokens of the documents, in their order, some documents at a time."""
    for batch in tokens.with_format("arrow").iter(DOCUMENTS_AT_ONCE):
        yield batch[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _tokens(source: TextSource, tokenizer: Any, loss_on: LossOn, count_bytes: bool) -> Any:
    """The documents as a `datasets.Dataset` of tokens."""
    from datasets import Features, Sequence, Value

    text = {"content": Value("large_string"), "digest": Value("string")}
    where = {"file": Value("string"), "line": Value("int64")}
    found = _generated(rows, {"source": source, "version": _code()}, features=Features(text | where))
    features = {"input_ids": Sequence(Value("int32"))}
    if loss_on != "all":
        features["is_target"] = Sequence(Value("bool"))
    if count_bytes:
        features["bytes"] = Sequence(Value("int32"))
    options = {"kind": source.kind, "loss_on": loss_on, "count_bytes": count_bytes, "code": _code()}
    return found.map(
        functools.partial(_tokenize, tokenizer),
        fn_kwargs=options,
        batched=True,
        batch_size=DOCUMENTS_AT_ONCE,
        writer_batch_size=DOCUMENTS_AT_ONCE,
        remove_columns=["content"],
        features=Features(features | {"digest": Value("string")} | where),
        desc="tokenizing",
    )


def _tokenize(
    tokenizer: Any, found: dict[str, list[Any]], *, kind: DocumentKind, loss_on: LossOn, count_bytes: bool, code: str
) -> dict[str, list[Any]]:
    """Columns of `_tokens`. `code` is for the cache."""
    contents, end = found["content"], getattr(tokenizer, "eos_token_id", None)
    ids: list[list[int]]
    masks: list[list[bool]] = []
    texts = contents
    if kind in ("plain", "text"):
        ids = tokenizer(contents, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [[*one, end] if one and end is not None else one for one in ids]
    else:
        parsed = [json.loads(content) for content in contents]
        wheres = [place(file, line) for file, line in zip(found["file"], found["line"], strict=True)]
        if kind == "pairs":
            both = [chat.completion(tokenizer, one, loss_on) for one in parsed]
            texts = [one["prompt"] + one["completion"] for one in parsed]
        else:
            both = [chat.conversation(tokenizer, one, at, loss_on) for one, at in zip(parsed, wheres, strict=True)]
            texts = [
                chat.rendered(tokenizer, one, at) if count_bytes else "" for one, at in zip(parsed, wheres, strict=True)
            ]
        ids, masks = [one for one, _ in both], [[False, *mask[1:]] for _, mask in both]
    columns: dict[str, list[Any]] = {"input_ids": ids}
    if loss_on != "all":
        columns["is_target"] = masks
    if count_bytes:
        columns["bytes"] = [
            np.pad(sizes, (0, len(one) - len(sizes)))  # for the end of text
            for one, sizes in zip(ids, (text_bytes.bytes_by_token(tokenizer, text) for text in texts), strict=True)
        ]
    return columns


def _packed(tokens: Any, length: int, code: str) -> Iterator[dict[str, Any]]:
    """Sequences: `input_ids`, `labels` if there is a mask; `targets`, and the `bytes` that these stand for."""
    names = [name for name in ("input_ids", "is_target", "bytes") if name in tokens.column_names]
    rest: dict[str, NDArray[Any]] = {name: np.zeros(0, np.int32) for name in names}
    any_yet = False
    for parts in zip(*(token_chunks(tokens, name) for name in names), strict=True):
        rest = {name: np.concatenate([rest[name], part]) for name, part in zip(names, parts, strict=True)}
        whole = len(rest["input_ids"]) // length
        for at in range(0, whole * length, length):
            one = {name: values[at : at + length] for name, values in rest.items()}
            is_target = one["is_target"].astype(bool) if "is_target" in one else np.ones(length, bool)
            is_target = is_target & (np.arange(length) > 0)  # nothing predicts the first
            row = {"input_ids": one["input_ids"], "targets": is_target.sum()}
            if "is_target" in one:
                row["labels"] = np.where(is_target, one["input_ids"], IGNORED)
            yield {**row, "bytes": one["bytes"][is_target].sum() if "bytes" in one else 0}
        rest = {name: values[whole * length :] for name, values in rest.items()}
        any_yet |= whole > 0
    if not any_yet:
        raise ConfigError(
            f"the text has no {length} tokens, which is less than one batch", way_out="more text, or shorter sequences"
        )


def _generated(function: Callable[..., Any], options: dict[str, Any], tokens: Any = None, features: Any = None) -> Any:
    """What `function` yields, as a `datasets.Dataset` that is cached on disk."""
    from datasets import Dataset, Features, Sequence, Value
    from datasets.exceptions import DatasetGenerationError

    if features is None:
        ids = {name: Sequence(Value("int32")) for name in ("input_ids", "labels")}
        if "is_target" not in tokens.column_names:
            del ids["labels"]
        features = Features(ids | {"targets": Value("int32"), "bytes": Value("int64")})
    try:
        return Dataset.from_generator(function, features=features, gen_kwargs=options)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, FarSkipError):
            raise error.__cause__ from None
        raise


def _column(sequences: Any, name: str) -> NDArray[np.int64]:
    found = [batch[name].to_numpy() for batch in sequences.with_format("arrow").iter(10_000)]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


@functools.cache
def _code() -> str:
    """A hash of what makes tokens of files: another version of it does not read the caches of this one."""
    modules = [module.__file__ for module in (chat, documents, text_bytes)]
    return hashlib.sha256(b"".join(Path(str(name)).read_bytes() for name in [*modules, __file__])).hexdigest()


def _ranks() -> int:
    world = world_group()
    return world.size() if world is not None else 1


def _stacked(rows: Iterable[dict[str, torch.Tensor]]) -> torch.Tensor | dict[str, torch.Tensor]:
    rows = list(rows)
    found = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return found if "labels" in found else found["input_ids"]
