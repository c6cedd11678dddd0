"""Text files as batches of token ids.

In:    text files, a tokenizer of `transformers`, a length and a batch size.
Out:   a `DataLoader`: shuffled anew in each epoch, each rank with its own part; every batch has the same shape.
Never: pads. Documents follow one another with the tokenizer's end-of-text token in between, if it has one, and are cut
       into sequences; what is left at the end is dropped.

`datasets` reads, tokenizes and keeps the result in its cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler, SequentialSampler

from farskip_compile._compat.distributed import world_group
from farskip_compile.errors import ConfigError


def text_batches(
    files: Sequence[str | Path],
    tokenizer: Any,
    *,
    sequence_length: int,
    batch_size: int,
    shuffle: bool = True,
    limit: int | None = None,
) -> DataLoader[Any]:
    """Batches of token ids [batch_size, sequence_length].

    Args:
        files: text in UTF-8, one document each.
        tokenizer: of `transformers`.
        sequence_length: tokens of one sequence.
        batch_size: sequences of one batch, on each rank.
        shuffle: in another order in each epoch.
        limit: sequences that are used; None: all.

    Raises:
        ConfigError: `datasets` is missing, a file is, or there is too little text for one batch.
    """
    try:
        from datasets import Dataset
    except ImportError as error:
        raise ConfigError("datasets is not installed", way_out="pip install 'farskip-compile[distill]'") from error
    if missing := [str(file) for file in files if not Path(file).is_file()]:
        raise ConfigError(f"there is no file {missing[0]}", way_out="text files in UTF-8")
    lines = Dataset.from_text([str(file) for file in files], keep_linebreaks=True, sample_by="document")
    end = getattr(tokenizer, "eos_token_id", None)

    def cut(found: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        tokens: list[int] = []
        for text in found["text"]:
            tokens += [
                *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
                *([end] if end is not None else []),
            ]
        whole = len(tokens) // sequence_length * sequence_length
        return {"input_ids": [tokens[at : at + sequence_length] for at in range(0, whole, sequence_length)]}

    sequences: Any = lines.map(cut, batched=True, batch_size=None, remove_columns=lines.column_names)
    if limit is not None:
        sequences = sequences.select(range(min(limit, len(sequences))))
    world = world_group()
    ranks = world.size() if world is not None else 1
    if len(sequences) < batch_size * ranks:
        raise ConfigError(
            f"the text has {len(sequences)} sequences of {sequence_length} tokens, which is less than one batch of "
            f"{batch_size} on {ranks} ranks",
            way_out="more text, shorter sequences or smaller batches",
        )
    sampler: Sampler[int]
    if ranks > 1:
        sampler = DistributedSampler(sequences, shuffle=shuffle, drop_last=True)
    else:
        sampler = RandomSampler(sequences) if shuffle else SequentialSampler(sequences)
    return DataLoader(
        sequences.with_format("torch"),
        batch_size=batch_size,
        sampler=sampler,
        drop_last=True,
        collate_fn=_stacked,
    )


def _stacked(rows: Iterable[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.stack([row["input_ids"] for row in rows])
