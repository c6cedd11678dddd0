# SPDX-License-Identifier: Apache-2.0
"""A distillation as a file, which `farskip heal CONFIG.toml` reads.

In:    a TOML file.
Out:   `Job`: model, data and configuration; a wrong key or value is a `ConfigError` that names it.
Never: trains; takes held-out text that is in the training text, unless the file says so.

    model = "path/to/checkpoint"        # a folder from save_pretrained, or MODEL as `farskip explain` takes it
    tokenizer = "path/to/tokenizer"     # left out: the model's folder
    dtype = "float32"                   # of the parameters; left out: as they are

    [data]
    train = ["text/*.txt"]              # patterns, from the folder of this file
    held_out = ["held_out.txt"]         # or held_out_fraction = 0.02: of the documents of `train`
    format = "text"                     # "jsonl", "chat"; left out: by the suffix
    text_field = "content"              # the key of the text in JSON Lines; left out: "text"
    chat_template = "chat.jinja"        # of conversations; left out: the tokenizer's. The checkpoint keeps that one
    loss_on = "assistant"               # targets in conversations and completions; or "all"
    sequence_length = 512
    batch_size = 8
    held_out_sequences = 64             # how many are used; left out: all
    overlap_tokens = 50                 # held-out and training text may not share a run of that many tokens
    overlap_limit = 0.01                # in more than this part of the held-out sequences, nor any document
    allow_overlap = false               # true: don't compare them

    [distill]                           # any option of DistillConfig
    manifest = "plan.json"              # says connectivity and layers; or
    connectivity = "full"
    steps = 2000
    output = "healed"

What the options of data mean: `documents` (formats, split), `texts` (sequences, targets), `contamination` (overlap).
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from farskip_compile.base.choices import LossOn
from farskip_compile.base.json_files import JsonReader
from farskip_compile.base.reading.files import read_bytes
from farskip_compile.errors import ConfigError
from farskip_compile.healing.distill.config import DistillConfig
from farskip_compile.healing.distill.source import model_of, tokenizer_of
from farskip_compile.healing.texts.contamination import LIMIT, RUN, TextOverlap, find_overlap
from farskip_compile.healing.texts.documents import Format
from farskip_compile.healing.texts.loaders import TextBatches, text_batches
from farskip_compile.manifest import load_manifest


@dataclass(frozen=True)
class Job:
    """Everything that `self_distill` takes."""

    model: nn.Module
    tokenizer: Any
    data: TextBatches
    held_out: TextBatches
    config: DistillConfig
    bytes_per_token: float | None = None
    """Of the held-out text (`TextBatches.bytes_per_token`)."""
    overlap: TextOverlap | None = None
    """Of held-out and training text; None: not compared."""


@dataclass(frozen=True)
class _Data:
    """The table `data` of the file."""

    train: tuple[str, ...]
    sequence_length: int
    batch_size: int
    held_out: tuple[str, ...] | None = None
    held_out_fraction: float | None = None
    held_out_sequences: int | None = None
    format: Format | None = None
    text_field: str | None = None
    chat_template: str | None = None
    loss_on: LossOn | None = None
    allow_overlap: bool = False
    overlap_tokens: int = RUN
    overlap_limit: float = LIMIT


@dataclass(frozen=True)
class _File:
    """The file."""

    model: str
    data: _Data
    tokenizer: str | None = None
    dtype: str | None = None
    distill: Mapping[str, Any] = field(default_factory=dict)


def read_job(path: Path) -> Job:
    """What the file at `path` asks for.

    Raises:
        ConfigError: it can't be read, or asks for something that is not there.
    """
    try:
        found = tomllib.loads(read_bytes(path).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"can't read {path}: {error}", way_out="a TOML file") from error
    if isinstance(data := found.get("data"), dict):  # one pattern may stand for a list of them
        data.update({key: [data[key]] for key in ("train", "held_out") if isinstance(data.get(key), str)})
    file = JsonReader(str(path), way_out="see `farskip heal --help`").decode(_File, found)
    _check(file.data, path)
    config = _config(path, dict(file.distill))
    model = model_of(file.model, path.parent, file.dtype)
    tokenizer = tokenizer_of(file.tokenizer or file.model, path.parent)
    train, held_out = _texts(file.data, tokenizer, path.parent)
    overlap = None
    if not file.data.allow_overlap:
        overlap = find_overlap(train, held_out, tokenizer, run=file.data.overlap_tokens)
        overlap.check(file.data.overlap_limit)
    return Job(model, tokenizer, train, held_out, config, held_out.bytes_per_token, overlap)


def _check(data: _Data, path: Path) -> None:
    """A `ConfigError` for a number that can't be, or a choice that is not made."""
    least = {"sequence_length": 1, "batch_size": 1, "held_out_sequences": 1, "overlap_tokens": 2}
    for key, most in least.items():
        if (value := getattr(data, key)) is not None and value < most:
            raise ConfigError(f"{path}: data.{key}={value} is not a count", way_out=f"a whole number, at least {most}")
    if not 0 <= data.overlap_limit < 1:
        raise ConfigError(
            f"{path}: data.overlap_limit={data.overlap_limit} is not a part of the sequences",
            way_out="from 0 to less than 1; allow_overlap = true: no limit",
        )
    if (data.held_out is None) == (data.held_out_fraction is None):
        raise ConfigError(
            f"{path}: the field data.held_out is missing"
            if data.held_out is None
            else f"{path} has data.held_out and data.held_out_fraction",
            way_out="one of them: held_out = [patterns], or held_out_fraction = 0.02 of the documents of data.train",
        )


def _texts(data: _Data, tokenizer: Any, folder: Path) -> tuple[TextBatches, TextBatches]:
    """Training and held-out text."""
    if data.chat_template is not None:
        tokenizer = copy.deepcopy(tokenizer)
        try:
            tokenizer.chat_template = read_bytes(folder / data.chat_template).decode()
        except (OSError, ValueError) as error:
            raise ConfigError(f"can't read data.chat_template: {error}", way_out="a file in Jinja") from error
    options: dict[str, Any] = {
        key: getattr(data, key)
        for key in ("sequence_length", "batch_size", "format", "text_field", "loss_on", "held_out_fraction")
    }
    files = _files(data.train, folder, "data.train")
    others = files if data.held_out is None else _files(data.held_out, folder, "data.held_out")
    known: dict[str, Any] = {"shuffle": False, "limit": data.held_out_sequences, "count_bytes": True}
    return text_batches(files, tokenizer, **options), text_batches(
        others, tokenizer, **options, **known, part="held_out"
    )


def _config(path: Path, options: dict[str, Any]) -> DistillConfig:
    """The configuration that the table `distill` asks for; paths are from the folder of the file."""
    for key in ("output", "teacher_cache"):
        if key in options:
            options[key] = path.parent / options[key]
    if "manifest" in options:
        if clash := {"connectivity", "layers"} & {*options}:
            raise ConfigError(
                f"{path} has distill.manifest and distill.{min(clash)}", way_out="one of them: the manifest says both"
            )
        found = load_manifest(path.parent / options.pop("manifest"))
        options |= {"connectivity": found.connectivity, "layers": found.layers}
    if options.get("layers") is not None:
        options["layers"] = tuple(options["layers"])
    return DistillConfig.from_mapping(options, f"{path}, distill")


def _files(patterns: tuple[str, ...], folder: Path, key: str) -> list[Path]:
    found = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    if not found:
        raise ConfigError(f"{key} matches no file in {folder}", way_out="patterns from the folder of the configuration")
    return found
