"""English text for small models, and as token ids: to train on, to choose weights by, and to judge rows by.

In:    a folder and a scale.
Out:   `TextData`: everything that a row is fed. The tokenizer is a byte-level BPE trained on the training text, kept in
       the folder.
Never: a line or a sequence in two of the three; another split in another run. The source is cut once, at 97 %.

    whole   Webster's dictionary of 1913 with later additions (Debian's `dict-gcide`, 40 MB); other domain: `fortunes`
    quick   the help texts of Python's language reference (`pydoc_data.topics`, 0.5 MB); other domain: docstrings of
            its library. Nothing to download
"""

from __future__ import annotations

import gzip
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill_bench.rows import Scale
from farskip_compile.distill import text_batches

END = "<end>"
HELD_OUT = 0.03
MOST_MEGABYTES = 24
"""Of the dictionary: more than any run here consumes."""
NO_PROSE = ("ascii-art", "perl", "translate-me")
"""Files of quotations that are left out."""


class NoText(Exception):
    """No text is available; the message says why."""


def _corpus(folder: Path, *, quick: bool) -> list[Path]:
    """Files to train on, held out, and of the other domain."""
    folder = folder / ("quick" if quick else "whole")
    train, held_out, other_domain = files = [folder / f"{name}.txt" for name in ("train", "held_out", "other_domain")]
    if not other_domain.exists():  # it is written last
        folder.mkdir(parents=True, exist_ok=True)
        text = _topics() if quick else _dictionary(folder)
        cut = text.rindex("\n\n", 0, int(len(text) * (1 - HELD_OUT)))
        train.write_text(text[:cut])
        held_out.write_text(text[cut:].strip() + "\n")
        other_domain.write_text("\n\n".join(_docstrings())[:200_000] if quick else _quotations(folder))
    return files


def _dictionary(folder: Path) -> str:
    file = _package("dict-gcide", folder) / "usr/share/dictd/gcide.dict.dz"
    text = gzip.decompress(file.read_bytes()).decode("utf-8", errors="ignore")
    text = text[text.index("\nAb") :]  # after the preface
    text = re.sub(r"\n +\[[^\]\n]{1,40}\](?=\n)", "", text)  # who wrote an entry
    return text[-MOST_MEGABYTES * 1_000_000 :]


def _quotations(folder: Path) -> str:
    folder = _package("fortunes", folder) / "usr/share/games/fortunes"
    files = [file for file in sorted(folder.iterdir()) if not file.suffix and file.name not in NO_PROSE]
    return "\n\n".join(part.strip() for file in files for part in file.read_text().split("\n%\n"))


def _topics() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(text.strip() for _, text in sorted(topics.items()))


def _docstrings() -> Iterator[str]:
    for name in ("email", "logging", "unittest", "json", "http", "asyncio"):
        package = __import__(name)
        for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda one: one.name):
            module = sys.modules.get(f"{name}.{found.name}")
            if module is not None and (text := inspect.getdoc(module)):
                yield text
            for _, value in sorted(vars(module or package).items()):
                if inspect.isclass(value) and value.__module__.startswith(name) and (text := inspect.getdoc(value)):
                    yield text


def _package(name: str, folder: Path) -> Path:
    """A Debian package, unpacked."""
    target = folder / name
    if target.exists():
        return target
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NoText(f"{name} is a Debian package, and this machine has no apt-get; --quick needs no download")
    with tempfile.TemporaryDirectory() as temporary:
        done = subprocess.run(["apt-get", "download", name], cwd=temporary, capture_output=True, text=True, check=False)
        files = sorted(Path(temporary).glob("*.deb"))
        if not files:
            raise NoText(f"apt-get download {name}: {done.stderr.strip().splitlines()[-1:]}; try `apt-get update`")
        unpacked = Path(temporary) / "unpacked"
        subprocess.run(["dpkg-deb", "-x", str(files[0]), str(unpacked)], check=True)
        shutil.copytree(unpacked, target)
    return target


@dataclass(frozen=True)
class TextData:
    """All text of an experiment as batches of token ids."""

    tokenizer: Any
    train: Any
    """A `DataLoader`; shuffled by torch's generator."""
    chosen_by: list[torch.Tensor]
    """Held-out batches by which the best weights of a run are chosen."""
    judged_by: Mapping[str, list[torch.Tensor]]
    """Other batches, by source: `held_out` (the source of the training text) and `other_domain`."""


def text_data(folder: Path, scale: Scale) -> TextData:
    """Everything, made once and then read from `folder`; `NoText` if a package can't be downloaded."""
    train, own, other = _corpus(folder, quick=scale.name != "whole")
    tokenizer = _tokenizer(train, train.parent / f"tokenizer-{scale.vocabulary}", scale.vocabulary)
    sizes = {"sequence_length": scale.sequence, "batch_size": scale.batch}

    def batches(file: Path, limit: int) -> list[torch.Tensor]:
        return list(text_batches([file], tokenizer, **sizes, shuffle=False, limit=limit))

    held_out = batches(own, scale.judged + scale.validated)
    chosen = scale.validated // scale.batch
    judged = {"held_out": held_out[chosen:], "other_domain": batches(other, scale.judged)}
    return TextData(tokenizer, text_batches([train], tokenizer, **sizes), held_out[:chosen], judged)


def _tokenizer(file: Path, folder: Path, vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
        trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END], **options)
        tokenizer.train([str(file)], trainer)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)
