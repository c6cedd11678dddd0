"""A distillation as a file, which `farskip distill CONFIG` reads, and text files as batches of token ids.

In:    a TOML file; text files, a tokenizer of `transformers`, a length and a batch size.
Out:   `Job`: model, data and configuration; a wrong key or value is a `ConfigError` that names it. A `DataLoader`:
       shuffled anew in each epoch, each rank with its own part; every batch has the same shape.
Never: trains; pads. Documents follow one another with the tokenizer's end-of-text token in between, if it has one, and
       are cut into sequences; what is left at the end is dropped. `datasets` reads, tokenizes and caches the result.

    model = "path/to/checkpoint"        # a folder from save_pretrained, or MODEL as `farskip explain` takes it
    tokenizer = "path/to/tokenizer"     # left out: the model's folder
    dtype = "float32"                   # of the parameters; left out: as they are

    [data]
    train = ["text/*.txt"]              # patterns, from the folder of this file
    held_out = ["held_out.txt"]
    sequence_length = 512
    batch_size = 8
    held_out_sequences = 64             # how many are used; left out: all

    [distill]                           # any option of DistillConfig
    manifest = "plan.json"              # says connectivity and layers; or
    connectivity = "full"
    steps = 2000
    output = "healed"
"""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler, SequentialSampler

from farskip_compile._compat.distributed import world_group
from farskip_compile.distill.config import DistillConfig
from farskip_compile.errors import ConfigError
from farskip_compile.json_files import Reader
from farskip_compile.manifest import load_manifest
from farskip_compile.prepare import prepare
from farskip_compile.reading import read_bytes
from farskip_compile.zoo.model_source import load


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
        batch_size: on each rank.
        shuffle: in another order in each epoch.
        limit: number of sequences that are used; None: all.

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
    rows = sequences.with_format("torch")
    return DataLoader(rows, batch_size=batch_size, sampler=sampler, drop_last=True, collate_fn=_stacked)


def _stacked(rows: Iterable[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.stack([row["input_ids"] for row in rows])


@dataclass(frozen=True)
class Job:
    """Everything that `self_distill` takes."""

    model: nn.Module
    tokenizer: Any
    data: Iterable[Any]
    held_out: Iterable[Any]
    config: DistillConfig


@dataclass(frozen=True)
class _Data:
    """The table `data` of the file."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    sequence_length: int
    batch_size: int
    held_out_sequences: int | None = None


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
    file = Reader(str(path), way_out="see `farskip distill --help`").decode(_File, found)
    for key in ("sequence_length", "batch_size", "held_out_sequences"):
        if (value := getattr(file.data, key)) is not None and value < 1:
            raise ConfigError(f"{path}: data.{key}={value} is not a count", way_out="a whole number, at least 1")
    config = _config(path, dict(file.distill))
    model = _model(file.model, path.parent, file.dtype)
    tokenizer = _tokenizer(file.tokenizer or file.model, path.parent)
    given = file.data
    size: dict[str, Any] = {"sequence_length": given.sequence_length, "batch_size": given.batch_size}
    train = text_batches(_files(given.train, path.parent, "data.train"), tokenizer, **size)
    files = _files(given.held_out, path.parent, "data.held_out")
    held_out = text_batches(files, tokenizer, **size, shuffle=False, limit=given.held_out_sequences)
    return Job(model, tokenizer, train, held_out, config)


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


def _model(name: str, folder: Path, dtype: str | None) -> nn.Module:
    kind = getattr(torch, dtype, None) if dtype is not None else None
    if dtype is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise ConfigError(f"dtype={dtype!r} is not a floating-point type", way_out='"float32" or "bfloat16"')
    if not (folder / name).is_dir():
        found: Any = load(name).model
    else:
        _need_transformers(name)
        from transformers import AutoModelForCausalLM

        found = AutoModelForCausalLM.from_pretrained(str(folder / name))
    if not isinstance(found, nn.Module):
        raise ConfigError(f"{name} is {type(found).__name__}, not a module", way_out="a checkpoint folder, or a MODEL")
    model = found.to(kind) if kind is not None else found
    prepare(model)
    return model


def _tokenizer(name: str, folder: Path) -> Any:
    _need_transformers("a tokenizer")
    from transformers import AutoTokenizer

    if not (folder / name).is_dir():
        raise ConfigError(f"there is no tokenizer {name}", way_out='tokenizer = "a folder from save_pretrained"')
    return AutoTokenizer.from_pretrained(str(folder / name))


def _need_transformers(what: str) -> None:
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(f"{what} needs transformers", way_out="pip install 'farskip-compile[distill]'")
