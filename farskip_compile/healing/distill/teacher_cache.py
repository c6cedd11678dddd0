# SPDX-License-Identifier: Apache-2.0
"""A teacher on disk: what the original model said about each sequence, written before the first training step.

In:    a folder; whose logits they are; all batches that it will be asked about, once, and the original.
Out:   `CachedTeacher`: for each sequence, by the hash of its tokens, the k largest log-probabilities at each position.
Never: serves another model's logits, or damaged ones: the cache says whose they are, and how many, and each file is
       compared with its seal when it is read; anything else is refused.

Files: `about-RANK.json`; for each rank and batch `RANK-NUMBER.safetensors` with `values` [B, T - 1, k] in float32 and
`indices` in int32 (8 k bytes a token), and `RANK-NUMBER.json` with the keys of its sequences, the seal of the tensors
and the hash of `about`; the JSON is sealed, and written last. Which rank made a file does not matter: all are read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from farskip_compile.base.json_files import JsonReader, read_sealed, write_sealed
from farskip_compile.errors import ConfigError, DistillationError
from farskip_compile.healing.causal.asking import MEMORY, Hidden
from farskip_compile.healing.causal.batches import Batch
from farskip_compile.healing.causal.identity import bytes_of
from farskip_compile.healing.causal.teacher import TopLogits
from farskip_compile.healing.causal.tensor_files import Seal, library, read_tensors, write_tensors

FILES_IN_MEMORY = 16
NAME = re.compile(r"\d+-\d{6}x*")
ELSEWHERE = "another folder (teacher_cache=...), or remove this one"


@dataclass(frozen=True)
class CachedBatch:
    """One batch in the folder."""

    about: str
    """Hash of what its writer said whose logits they are."""
    keys: tuple[str, ...]
    """Of its sequences, in order."""
    tensors: Seal


def sequence_keys(batch: Batch) -> list[str]:
    """For each sequence of the batch, a hash of what the model sees of it."""
    inputs = sorted(batch.inputs.items())
    return [_hash_of_sequence({name: value[row] for name, value in inputs}) for row in range(len(inputs[0][1]))]


def _hash_of_sequence(parts: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, part in parts.items():
        digest.update(f"{name} {part.dtype} {list(part.shape)} ".encode())
        digest.update(bytes_of(part))
    return digest.hexdigest()


class CachedTeacher:
    """Reads and writes a folder of `k` logits at each position; while writing, `memory` bytes of logits are computed
    at a time.

    Raises:
        ConfigError: the folder holds the logits of something else than `about` says (plain data).
        DistillationError: a file in it is damaged.
    """

    def __init__(self, folder: Path, about: dict[str, Any], k: int, rank: int = 0, memory: int = MEMORY) -> None:
        library()
        self.folder, self.rank, self.k, self.memory = folder, rank, k, memory
        ours, file = {**about, "top_k": k}, folder / f"about-{rank}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"can't make the folder {folder}: {error.strerror}", way_out=ELSEWHERE) from error
        if file.exists():
            theirs = self._read(file)
            if theirs != ours:
                other = next(key for key in (*ours, *theirs) if theirs.get(key) != ours.get(key))
                raise ConfigError(
                    f"{folder} holds logits with another {other}: {theirs.get(other)!r}, not {ours.get(other)!r}",
                    way_out=ELSEWHERE,
                )
        else:
            write_sealed(file, ours, way_out=ELSEWHERE)
        self._ours = _hash(ours)
        self._entries: dict[str, CachedBatch] = {}
        self.places: dict[str, tuple[str, int]] = {}
        self._load = functools.lru_cache(FILES_IN_MEMORY)(self._tensors)
        self.refresh()

    def refresh(self) -> None:
        """Read which sequences all ranks have written.

        Raises:
            ConfigError: a file says that its logits are another model's.
            DistillationError: a file is damaged.
        """
        owners = {_hash(self._read(file)) for file in self.folder.glob("about-*.json")}
        for file in sorted(self.folder.glob("*.json")):
            name = file.name.removesuffix(".json")
            if name in self._entries or not NAME.fullmatch(name):
                continue
            again = _again(file)
            entry = JsonReader(str(file), DistillationError, always=again).decode(CachedBatch, self._read(file))
            if entry.about not in owners:
                raise ConfigError(f"{file} holds logits of something else than this folder", way_out=again)
            self._add(name, entry)

    def fill(self, batches: Iterable[Batch], logits: Callable[[Batch], torch.Tensor | Hidden]) -> int:
        """Ask the original about each batch with a sequence that is not known yet; returns the number of batches."""
        asked = 0
        for number, batch in enumerate(batches):
            keys = sequence_keys(batch)
            if all(key in self.places for key in keys):
                continue
            top = TopLogits.of(logits(batch), self.k, self.memory)
            name = f"{self.rank}-{number:06d}"
            while name in self._entries:
                name += "x"
            kept = {"values": top.values, "indices": top.indices.to(torch.int32)}
            entry = CachedBatch(self._ours, tuple(keys), write_tensors(self.folder / f"{name}.safetensors", kept))
            write_sealed(self.folder / f"{name}.json", asdict(entry), error=DistillationError)
            self._add(name, entry)
            asked += 1
        return asked

    def __call__(self, batch: Batch) -> TopLogits:
        """The original's logits for the sequences of `batch`.

        Raises:
            ConfigError: it was not asked about one of them.
            DistillationError: a file is damaged, or no longer there.
        """
        found = []
        for key in sequence_keys(batch):
            if key not in self.places:
                raise ConfigError(
                    f"{self.folder} has no logits for a sequence of this batch: the data changed after the first pass "
                    "over it",
                    way_out="data that gives the same sequences each time, in any order; or teacher='copy'",
                )
            name, row = self.places[key]
            values, indices = self._load(name)
            found.append((values[row], indices[row]))
        device = batch.targets.device
        return TopLogits(
            torch.stack([values for values, _ in found]).to(device),
            torch.stack([indices for _, indices in found]).to(device, torch.long),
        )

    def _add(self, name: str, entry: CachedBatch) -> None:
        self._entries[name] = entry
        self.places |= {key: (name, row) for row, key in enumerate(entry.keys)}

    def _tensors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        entry, file = self._entries[name], self.folder / f"{name}.safetensors"
        again = _again(file.with_suffix(".json"))
        found = read_tensors(file, entry.tensors, again)
        values, indices = found.get("values", torch.empty(0)), found.get("indices", torch.empty(0))
        if (values.dtype, indices.dtype, values.dim()) != (torch.float32, torch.int32, 3) or not (
            values.shape == indices.shape and len(values) == len(entry.keys)
        ):
            raise DistillationError(f"{file} does not hold what its index says", way_out=again)
        return values.clone(), indices.clone()

    def _read(self, file: Path) -> dict[str, Any]:
        way_out = ELSEWHERE if file.name.startswith("about-") else _again(file)
        return read_sealed(file, "cached teacher", way_out=way_out, error=DistillationError)


def _again(file: Path) -> str:
    return f"remove {file}, and start the run again: the original is asked again about these sequences"


def _hash(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
