"""The teacher: what the original model says about a batch.

In:    the model, before its first training step; for a cache on disk, all batches that it will be asked about, once.
Out:   a function of a batch that gives the original's logits, or the largest of them.
Never: copies the module: a copy may share what a hook or a replaced forward remembers of the original. The module
       itself is run as written, in evaluation mode, with frozen copies of its parameters and buffers. Never serves
       another model's logits: the cache says whose they are, and how many; anything else is refused. A softmax in less
       than float32.

    FrozenTeacher   the copies, in memory
    CachedTeacher   for each sequence, by the hash of its tokens, the k largest log-probabilities at each position

Files of a cache: `about-RANK.json`; for each rank and batch `RANK-NUMBER.pt` with `values` [B, T - 1, k] in float32 and
`indices` in int32 (8 k bytes a token), and `RANK-NUMBER.keys.json`; they are complete or absent. Which rank made a file
does not matter: all are read.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from farskip_compile.distill.batches import Batch, caller
from farskip_compile.errors import ConfigError
from farskip_compile.json_files import replacing, write_text
from farskip_compile.prepare.preserve_state import modes_kept

FILES_IN_MEMORY = 16


@dataclass(frozen=True)
class TopLogits:
    """The largest log-probabilities of a teacher at each position but the last."""

    values: torch.Tensor
    """[B, T - 1, k], log-probabilities, the largest first."""
    indices: torch.Tensor
    """[B, T - 1, k], tokens."""

    @classmethod
    def of(cls, logits: torch.Tensor, k: int) -> TopLogits:
        """The k largest of logits [B, T, V]."""
        log_p = logits[:, :-1].float().log_softmax(-1)
        values, indices = log_p.topk(min(k, log_p.shape[-1]), dim=-1)
        return cls(values, indices)


Teacher = Callable[[Batch], torch.Tensor | TopLogits]
"""Gives the original's logits, or the largest of them, for a batch; without gradients."""


class FrozenTeacher:
    """The model as written, with the parameters that it has now.

    The model may be trained. Not `copied`: for a teacher that is asked before the first step only.
    """

    def __init__(self, model: nn.Module, *, copied: bool = True) -> None:
        self.model = model
        named = dict((*model.named_parameters(), *model.named_buffers()))
        values = self.values = {name: value.detach().clone() for name, value in named.items()} if copied else {}
        self._logits = caller(lambda *args, **kwargs: functional_call(model, values, args, kwargs), model)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits [B, T, V]."""
        with evaluating(self.model):
            return self._logits(batch)

    def check_frozen(self, batch: Batch, before: torch.Tensor) -> None:
        """Find a teacher that moves with its student: its logits must be what they were, bit for bit.

        Raises:
            ConfigError: they are not.
        """
        if not torch.equal(before, self(batch)):
            raise ConfigError(
                "the teacher no longer gives the logits that it gave before the first step: a part of the model that "
                "is trained is neither a parameter nor a buffer of it, or the model is not deterministic in evaluation "
                "mode",
                way_out="register what is trained with the module; or teacher='cache', which runs the original before",
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within a `with`; afterwards each module has the mode that it had."""
    with modes_kept(model):
        for module in model.modules():
            module.training = False
        yield


def checksum(model: nn.Module) -> str:
    """Distinguishes models by names, shapes and sums of their parameters."""
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
    """Reads and writes a folder of `k` logits at each position.

    Raises:
        ConfigError: the folder holds the logits of something else than `about` says (plain data).
    """

    def __init__(self, folder: Path, about: dict[str, Any], k: int, rank: int = 0) -> None:
        self.folder, self.k, self.rank = folder, k, rank
        folder.mkdir(parents=True, exist_ok=True)
        ours, file = {**about, "top_k": k}, folder / f"about-{rank}.json"
        if file.exists() and (theirs := json.loads(file.read_text())) != ours:
            other = next(key for key in ours if theirs.get(key) != ours[key])
            raise ConfigError(
                f"{folder} holds logits with another {other}: {theirs.get(other)!r}, not {ours[other]!r}",
                way_out="another folder (teacher_cache=...), or remove this one",
            )
        write_text(file, json.dumps(ours))
        self.places: dict[str, tuple[str, int]] = {}
        load = functools.partial(torch.load, map_location="cpu", weights_only=True)
        self._load = functools.lru_cache(FILES_IN_MEMORY)(lambda name: load(folder / f"{name}.pt"))
        self.refresh()

    def refresh(self) -> None:
        """Read which sequences all ranks have written."""
        for file in sorted(self.folder.glob("*.keys.json")):
            name = file.name.removesuffix(".keys.json")
            self.places |= {key: (name, row) for row, key in enumerate(json.loads(file.read_text()))}

    def fill(self, batches: Iterable[Batch], logits: Callable[[Batch], torch.Tensor]) -> int:
        """Ask the original about each batch with a sequence that is not known yet; returns the number of batches."""
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
            with replacing(self.folder / f"{name}.pt") as temporary:
                torch.save(kept, temporary)
            write_text(self.folder / f"{name}.keys.json", json.dumps(keys))
            self.places |= {key: (name, row) for row, key in enumerate(keys)}
            asked += 1
        return asked

    def __call__(self, batch: Batch) -> TopLogits:
        """The original's logits for the sequences of `batch`.

        Raises:
            ConfigError: it was not asked about one of them.
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
            kept = self._load(name)
            found.append((kept["values"][row], kept["indices"][row]))
        device = batch.targets.device
        return TopLogits(
            torch.stack([values for values, _ in found]).to(device),
            torch.stack([indices for _, indices in found]).to(device, torch.long),
        )
