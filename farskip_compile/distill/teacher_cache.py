"""The largest logits of the original, on disk: a teacher without a second set of weights in memory.

In:    the original model and, once, all batches that it will be asked about.
Out:   for each sequence, by the hash of its tokens, the k largest log-probabilities at each position.
Never: serves another model's logits: the folder says whose they are, and how many; anything else is refused.

Files: `about.json`; for each rank and batch `RANK-NUMBER.pt` with `values` [B, T - 1, k] in float32 and `indices` in
int32 (8 k bytes a token); they are complete or absent. Which rank made a file does not matter: all are read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from farskip_compile.distill.batches import Batch
from farskip_compile.distill.loss import TopLogits
from farskip_compile.errors import ConfigError

FILES_IN_MEMORY = 16


def checksum(model: nn.Module) -> str:
    """Tells models apart by names, shapes and sums of their parameters."""
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        local = value.detach()
        local = local.to_local() if hasattr(local, "to_local") else local
        sums = (local.double().sum().item(), local.double().abs().sum().item())
        digest.update(f"{name} {list(local.shape)} {sums}".encode())
    return digest.hexdigest()


def sequence_keys(batch: Batch) -> list[str]:
    """For each sequence of the batch, a hash of what the model sees of it."""
    parts = [value.cpu() for _, value in sorted(batch.inputs.items())]
    rows = (b"".join(part[row].numpy().tobytes() for part in parts) for row in range(len(parts[0])))
    return [hashlib.blake2b(row, digest_size=16).hexdigest() for row in rows]


class CachedTeacher:
    """Reads and writes a folder.

    Args:
        folder: made if it is not there.
        about: whose logits these are; plain data.
        k: logits of each position.
        rank: of this process.

    Raises:
        ConfigError: the folder holds the logits of something else.
    """

    def __init__(self, folder: Path, about: dict[str, Any], k: int, rank: int = 0) -> None:
        self.folder, self.k, self.rank = folder, k, rank
        folder.mkdir(parents=True, exist_ok=True)
        said, file = {**about, "top_k": k}, folder / f"about-{rank}.json"
        if file.exists() and (theirs := json.loads(file.read_text())) != said:
            other = next(key for key in said if theirs.get(key) != said[key])
            raise ConfigError(
                f"{folder} holds logits with another {other}: {theirs.get(other)!r}, not {said[other]!r}",
                way_out="another folder (teacher_cache=...), or remove this one",
            )
        file.write_text(json.dumps(said))
        self.places: dict[str, tuple[str, int]] = {}
        self._load = functools.lru_cache(FILES_IN_MEMORY)(self._read)
        self.look()

    def look(self) -> None:
        """Read which sequences there are, of all ranks."""
        for file in sorted(self.folder.glob("*.keys.json")):
            name = file.name.removesuffix(".keys.json")
            self.places |= {key: (name, row) for row, key in enumerate(json.loads(file.read_text()))}

    def fill(self, batches: Iterable[Batch], logits: Callable[[Batch], torch.Tensor]) -> int:
        """Ask the original about each batch that holds a sequence not known yet; returns how many were asked."""
        asked = 0
        for number, batch in enumerate(batches):
            keys = sequence_keys(batch)
            if all(key in self.places for key in keys):
                continue
            top = TopLogits.of(logits(batch), self.k)
            name = f"{self.rank}-{number:06d}"
            while (self.folder / f"{name}.pt").exists():
                name += "x"
            kept = {"values": top.values.cpu(), "indices": top.indices.to(torch.int32).cpu()}
            _whole(self.folder / f"{name}.pt", lambda path, kept=kept: torch.save(kept, path))  # type: ignore[misc]
            _whole(self.folder / f"{name}.keys.json", lambda path, keys=keys: path.write_text(json.dumps(keys)))  # type: ignore[misc]
            self.places |= {key: (name, row) for row, key in enumerate(keys)}
            asked += 1
        return asked

    def __call__(self, batch: Batch) -> TopLogits:
        """What the original said of the sequences of `batch`.

        Raises:
            ConfigError: it was not asked about one of them.
        """
        found = []
        for key in sequence_keys(batch):
            if key not in self.places:
                raise ConfigError(
                    f"{self.folder} has no logits for a sequence of this batch: the data changed after the first time "
                    "it was gone through",
                    way_out="data that gives the same sequences each time, in any order; or teacher='copy'",
                )
            name, row = self.places[key]
            kept = self._load(name)
            found.append((kept["values"][row], kept["indices"][row]))
        device = batch.targets.device
        return TopLogits(
            torch.stack([values for values, _ in found]).to(device),
            torch.stack([indices for _, indices in found]).to(device, torch.long),
        )

    def _read(self, name: str) -> dict[str, torch.Tensor]:
        return torch.load(self.folder / f"{name}.pt", map_location="cpu", weights_only=True)


def _whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name and then rename it: nobody sees half of one."""
    temporary = path.with_name(f".{path.name}.part")
    write(temporary)
    os.replace(temporary, path)
