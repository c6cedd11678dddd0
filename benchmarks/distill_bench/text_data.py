"""The text as token ids: training batches, batches by which weights are chosen, and batches by which rows are judged.

In:    a folder and a scale.
Out:   `TextData`: everything that a row is fed. The tokenizer is a byte-level BPE trained on the training text, kept in
       the folder.
Never: a sequence in two of the three; another split in another run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill_bench.scale import Scale
from distill_bench.texts import corpus
from farskip_compile.distill import text_batches

END = "<end>"


@dataclass(frozen=True)
class TextData:
    """See the module."""

    tokenizer: Any
    train: Any
    """A `DataLoader`; shuffled by torch's generator."""
    chosen_by: list[torch.Tensor]
    """Held-out batches by which the best weights of a run are chosen."""
    judged_by: Mapping[str, list[torch.Tensor]]
    """Other batches, by source: `held_out`, of the same source as the training text, and `other_domain`."""
    source: str


def text_data(folder: Path, scale: Scale) -> TextData:
    """Everything, made once and then taken from `folder`.

    Raises:
        NoText: there is no text.
    """
    text = corpus(folder, quick=scale.name != "whole")
    tokenizer = _tokenizer(text.train, text.train.parent / f"tokenizer-{scale.vocabulary}", scale.vocabulary)

    def batches(file: Path, limit: int) -> list[torch.Tensor]:
        found = text_batches(
            [file],
            tokenizer,
            sequence_length=scale.sequence,
            batch_size=scale.batch,
            shuffle=False,
            limit=limit,
        )
        return list(found)

    held_out = batches(text.held_out, scale.judged + scale.validated)
    chosen = scale.validated // scale.batch
    return TextData(
        tokenizer,
        text_batches([text.train], tokenizer, sequence_length=scale.sequence, batch_size=scale.batch),
        held_out[:chosen],
        {"held_out": held_out[chosen:], "other_domain": batches(text.other_domain, scale.judged)},
        text.source,
    )


def _tokenizer(file: Path, folder: Path, vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train([str(file)], trainer)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)
