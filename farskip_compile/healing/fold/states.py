# SPDX-License-Identifier: Apache-2.0
"""A fold on disk, from which a later one continues to the same result.

In:    what the fold is of (plain data), and each read when it is done: its record, and the parameters if it was
       accepted.
Out:   a folder with `about-RANK.json` and for each read `read-NUMBER-RANK.json`, sealed, and `.safetensors` beside it.
Never: continues the fold of another model, other text or another request; takes tensors that are not what was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from farskip_compile.base.json_files import JsonReader, read_sealed, write_sealed
from farskip_compile.errors import ConfigError, DistillationError
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.causal.tensor_files import Seal, library, local, read_tensors, write_tensors
from farskip_compile.healing.fold.record import FoldedRead

ANEW = "another folder, or remove this one"


@dataclass(frozen=True)
class _Done:
    """A read in the folder."""

    read: FoldedRead
    tensors: Seal | None


class States:
    """See the module; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, about: Mapping[str, Any], ranks: TrainingRanks) -> None:
        self.folder, self.ranks = folder, ranks
        if folder is None:
            return
        library()
        file = folder / f"about-{ranks.rank}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"can't make the folder {folder}: {error.strerror}", way_out=ANEW) from error
        if file.exists():
            theirs = read_sealed(file, "fold", way_out=ANEW, error=DistillationError)
            if other := next((key for key in about if theirs.get(key) != about[key]), None):
                raise ConfigError(f"{folder} holds the fold of another {other}", way_out=ANEW)
        else:
            write_sealed(file, dict(about), way_out=ANEW)

    def done(self, number: int, parameters: Mapping[str, torch.Tensor]) -> FoldedRead | None:
        """What was done at the site with this number, if all ranks have it; `parameters` become what they were then."""
        if self.folder is None:
            return None
        file = self._file(number)
        (missing,) = self.ranks.sum(not file.exists())
        if missing:
            return None
        reader = JsonReader(str(file), DistillationError, always=ANEW, accepts_null=True)
        found = reader.decode(_Done, read_sealed(file, "fold", way_out=ANEW, error=DistillationError))
        if found.tensors is not None:
            put_back(parameters, read_tensors(file.with_suffix(".safetensors"), found.tensors, ANEW))
        return found.read

    def write(self, number: int, read: FoldedRead, parameters: Mapping[str, torch.Tensor]) -> None:
        """Keep a read, and the parameters that it changed."""
        if self.folder is None:
            return
        file = self._file(number)
        seal = write_tensors(file.with_suffix(".safetensors"), parameters) if read.accepted else None
        write_sealed(file, asdict(_Done(read, seal)), error=DistillationError)

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"read-{number:04d}-{self.ranks.rank}.json"


def folded_weights(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    """The parameters that a fold in `folder` has changed, as it left them.

    Raises:
        DistillationError: a file is damaged.
    """
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob(f"read-*-{rank}.json")):
        reader = JsonReader(str(file), DistillationError, always=ANEW, accepts_null=True)
        done = reader.decode(_Done, read_sealed(file, "fold", way_out=ANEW, error=DistillationError))
        if done.tensors is not None:
            found |= read_tensors(file.with_suffix(".safetensors"), done.tensors, ANEW)
    return found


@torch.no_grad()
def put_back(parameters: Mapping[str, torch.Tensor], kept: Mapping[str, torch.Tensor]) -> None:
    """Copy the numbers of this rank."""
    for name, value in parameters.items():
        local(value).copy_(kept[name])


def numbers_of(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of the numbers of this rank, on the CPU."""
    return {name: local(value).cpu().clone() for name, value in parameters.items()}
