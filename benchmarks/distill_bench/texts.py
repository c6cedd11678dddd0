# SPDX-License-Identifier: Apache-2.0
"""Text for small models as token ids: to train on, to choose weights by, and to judge rows by.

In:    a folder, a scale and the name of a corpus.
Out:   `TextData`: everything that a row is fed. The tokenizer is a byte-level BPE trained on the training text, kept in
       the folder.
Never: a document in two of the three; another split in another run; held-out text from one place of the source.

Steps:
1. Sort the documents by a hash of their content. So the beginning of that order is spread over the whole source.
2. The first of them judge, those that follow choose weights, and the rest is learned from. Of a document that judges or
   chooses, only the beginning is used, so that a long one does not take the place of many.
3. Count what held-out and training text have in common all the same: runs of 50 tokens, such as licences.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import replace

from distill_bench.corpora import NoText, documents
from distill_bench.rows import Corpus, Scale
from farskip_compile.healing.distill import text_batches

__all__ = ["NoText", "TextData", "split", "text_data"]

END = "<end>"
PARTS = ("judged", "chosen", "train")
BEGINNING = 3000
"""Characters of a held-out document that are used."""
PER_TOKEN = 4
"""Characters that are held out for each token that is needed: most tokens have fewer."""
MOST_CHARACTERS = 24_000_000
"""To train on: more than any run here consumes."""


@dataclass(frozen=True)
class TextData:
    """All text of a corpus as batches of token ids."""

    tokenizer: Any
    files: Mapping[str, Path]
    """JSON Lines of documents, by part."""
    sequence: int
    chosen_by: list[torch.Tensor]
    """Held-out batches by which the best weights of a run are chosen."""
    judged_by: Mapping[str, list[torch.Tensor]]
    """Other batches, by source: `held_out`, and `elsewhere`: held-out text of another corpus, if the scale has one."""
    bytes_per_token: Mapping[str, float]
    """Bytes of text over targets, of `judged_by`."""

    def train(self, batch: int) -> Any:
        """A `DataLoader` of batches of that many sequences, shuffled by torch's generator."""
        return text_batches([self.files["train"]], self.tokenizer, sequence_length=self.sequence, batch_size=batch)


def text_data(folder: Path, scale: Scale, corpus: Corpus) -> TextData:
    """Everything, made once and then read from `folder`; `NoText` if a package can't be downloaded."""
    files = _files(folder, scale, corpus)
    tokenizer = _tokenizer(files["train"], folder / corpus / f"tokenizer-{scale.vocabulary}", scale.vocabulary)
    sizes = {"sequence_length": scale.sequence, "batch_size": scale.batch, "shuffle": False}
    chosen = text_batches([files["chosen"]], tokenizer, **sizes, limit=scale.validated)
    sources = {"held_out": files["judged"]}
    if others := [other for other in scale.corpora if other != corpus]:
        sources["elsewhere"] = _files(folder, scale, others[0])["judged"]
    judged = {
        source: text_batches([file], tokenizer, **sizes, limit=scale.judged, count_bytes=True)
        for source, file in sources.items()
    }
    per_token = {source: one.bytes_per_token or 0.0 for source, one in judged.items()}
    batches = {source: list(one) for source, one in judged.items()}
    return TextData(tokenizer, files, scale.sequence, list(chosen), batches, per_token)


def about_text(folder: Path, scale: Scale, corpus: Corpus) -> str:
    """What the corpus is, how it is split, and what its parts have in common."""
    from farskip_compile.healing.texts.contamination import find_overlap

    data = text_data(folder, scale, corpus)
    sizes = {"sequence_length": scale.sequence, "batch_size": scale.batch, "shuffle": False}
    judged = text_batches([data.files["judged"]], data.tokenizer, **sizes, limit=scale.judged)
    train = data.train(scale.batch)
    found = find_overlap(train, judged, data.tokenizer)
    about = (folder / corpus / ABOUT).read_text()
    return f"{about}, {train.counts.targets / 1e6:.1f} M tokens to train on; {found}"


ABOUT = "about.txt"


def split(texts: Sequence[str], held_out: Mapping[str, int], most: int) -> dict[str, list[str]]:
    """Documents by part; `held_out` and `most`: characters of each part of held-out text, and of `train`."""
    rest = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    found: dict[str, list[str]] = {}
    at = 0
    for part, size in {**held_out, "train": most}.items():
        begin, left = at, size
        while at < len(rest) and left > 0:
            left -= min(len(rest[at]), BEGINNING) if part in held_out else len(rest[at])
            at += 1
        found[part] = [text[:BEGINNING] if part in held_out else text for text in rest[begin:at]]
    return found


def _files(folder: Path, scale: Scale, corpus: Corpus) -> dict[str, Path]:
    folder = folder / corpus
    files = {part: folder / f"{part}.jsonl" for part in PARTS}
    if not files["train"].exists():  # it is written last
        texts, about = documents(corpus, folder)
        sequences = {"judged": scale.judged, "chosen": scale.validated}
        held_out = {part: PER_TOKEN * scale.sequence * count for part, count in sequences.items()}
        replace(folder / ABOUT, about)
        for part, some in split(texts, held_out, MOST_CHARACTERS).items():
            replace(files[part], "".join(json.dumps({"text": text}) + "\n" for text in some))
    return files


def _tokenizer(file: Path, folder: Path, vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
        trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END], **options)
        tokenizer.train_from_iterator((json.loads(line)["text"] for line in file.open()), trainer)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)
