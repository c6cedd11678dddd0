"""A distillation as a file: what `farskip distill CONFIG` reads.

In:    a TOML file.
Out:   `Job`: model, data and configuration; a wrong key or value is a `ConfigError` that names it.
Never: trains.

    model = "path/to/checkpoint"        # a folder from save_pretrained, or MODEL as `farskip explain` takes it
    tokenizer = "path/to/tokenizer"     # left out: the model's folder
    dtype = "float32"                   # of the parameters; left out: as they are

    [data]
    train = ["text/*.txt"]              # patterns, from the folder of this file
    held_out = ["held_out.txt"]
    sequence_length = 512
    batch_size = 8
    held_out_sequences = 64             # that are used; left out: all

    [distill]                           # any option of DistillConfig
    manifest = "plan.json"              # says connectivity and layers; or
    connectivity = "full"
    steps = 2000
    output = "healed"
"""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from farskip_compile.distill.config import DistillConfig
from farskip_compile.distill.texts import text_batches
from farskip_compile.errors import ConfigError
from farskip_compile.manifest import load_manifest
from farskip_compile.prepare import prepare
from farskip_compile.text_utils import did_you_mean
from farskip_compile.zoo.model_source import load

KEYS = ("model", "tokenizer", "dtype", "data", "distill")
DATA_KEYS = ("train", "held_out", "sequence_length", "batch_size", "held_out_sequences")


@dataclass(frozen=True)
class Job:
    """Everything that `self_distill` takes."""

    model: nn.Module
    tokenizer: Any
    data: Iterable[Any]
    held_out: Iterable[Any]
    config: DistillConfig


def read_job(path: Path) -> Job:
    """What the file at `path` asks for.

    Raises:
        ConfigError: it can't be read, or asks for something that is not there.
    """
    try:
        said = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"can't read {path}: {error}", way_out="a TOML file") from error
    _known(said, KEYS, "")
    data = said.get("data", {})
    _known(data, DATA_KEYS, "data.")
    for key in ("model", "data"):
        if key not in said:
            raise ConfigError(f"{path} has no {key!r}", way_out="see `farskip distill --help`")
    for key in ("train", "held_out", "sequence_length", "batch_size"):
        if key not in data:
            raise ConfigError(f"{path} has no data.{key}", way_out="see `farskip distill --help`")
    options = dict(said.get("distill", {}))
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
    config = DistillConfig.from_mapping(options)
    model = _model(said["model"], path.parent, said.get("dtype"))
    tokenizer = _tokenizer(said.get("tokenizer", said["model"]), path.parent)

    def batches(key: str, *, shuffle: bool, limit: int | None) -> Iterable[Any]:
        return text_batches(
            _files(data[key], path.parent, f"data.{key}"),
            tokenizer,
            sequence_length=_count(data, "sequence_length"),
            batch_size=_count(data, "batch_size"),
            shuffle=shuffle,
            limit=limit,
        )

    limit = _count(data, "held_out_sequences") if "held_out_sequences" in data else None
    return Job(
        model,
        tokenizer,
        batches("train", shuffle=True, limit=None),
        batches("held_out", shuffle=False, limit=limit),
        config,
    )


def _known(table: Mapping[str, Any], keys: tuple[str, ...], prefix: str) -> None:
    for key in table:
        if key not in keys:
            hint = did_you_mean(key, keys, f"known keys: {', '.join(keys)}", prefix=prefix)
            raise ConfigError(f"unknown key {prefix}{key}", way_out=hint)


def _count(data: Mapping[str, Any], key: str) -> int:
    value = data[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"data.{key}={value!r} is no count", way_out="a whole number, at least 1")
    return value


def _files(patterns: Any, folder: Path, key: str) -> list[Path]:
    if isinstance(patterns, str):
        patterns = [patterns]
    found = [file for pattern in patterns for file in sorted(folder.glob(pattern))] if patterns else []
    if not found:
        raise ConfigError(f"{key} matches no file in {folder}", way_out="patterns from the folder of the configuration")
    return found


def _model(name: str, folder: Path, dtype: str | None) -> nn.Module:
    kind = getattr(torch, dtype, None) if dtype is not None else None
    if dtype is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise ConfigError(f"dtype={dtype!r} is none", way_out='"float32" or "bfloat16"')
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
