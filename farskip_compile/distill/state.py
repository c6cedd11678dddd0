"""The state of a run on disk, from which a later run goes on to the same result.

In:    everything that changes while a run goes on, as a dictionary that `torch.save` takes.
Out:   a folder `state-STEP` with a file for each rank; what all ranks have is in the first rank's file only.
Never: leaves half a state where a later run would take it for one: a folder gets its name when all ranks have written,
       and the state before it is removed only then.

A state is read back only with the same configuration, number of ranks, and names and shapes of parameters.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from farskip_compile.distill.ranks import Ranks
from farskip_compile.errors import ConfigError

NAME = re.compile(r"state-(\d+)")


def newest(folder: Path) -> Path | None:
    """The last complete state in `folder`."""
    found = [(int(match[1]), path) for path in folder.glob("state-*") if (match := NAME.fullmatch(path.name))]
    return max(found)[1] if found else None


def save(folder: Path, step: int, tensors: Mapping[str, Any], own: Mapping[str, Any], ranks: Ranks) -> None:
    """Write a state, on all ranks.

    Args:
        folder: of the run.
        step: steps taken.
        tensors: by parameter or buffer, what belongs to it.
        own: all else; of this rank.
        ranks: of the run.
    """
    target, temporary = folder / f"state-{step:08d}", folder / f".state-{step:08d}"
    if ranks.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    ranks.barrier()
    kept = {name: value for name, value in tensors.items() if ranks.rank == 0 or name in ranks.parts}
    torch.save({"tensors": kept, "own": dict(own)}, temporary / f"rank-{ranks.rank}.pt")
    ranks.barrier()
    if ranks.rank == 0:
        before = [path for path in folder.glob("state-*") if NAME.fullmatch(path.name) and path != target]
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        for path in before:
            shutil.rmtree(path, ignore_errors=True)
    ranks.barrier()


def load(path: Path, ranks: Ranks, about: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `save` wrote: tensors, and this rank's own.

    Args:
        path: a folder that `newest` found.
        ranks: of this run.
        about: what must be equal to what was saved under `about`.

    Raises:
        ConfigError: it is the state of another run.
    """
    files = sorted({path / "rank-0.pt", path / f"rank-{ranks.rank}.pt"})
    if missing := next((file for file in files if not file.exists()), None):
        raise ConfigError(
            f"{missing} is missing: the run that wrote {path.name} had other ranks, or another disk",
            way_out="the same number of ranks and a disk that all see; or resume=False, or another output folder",
        )
    read = [torch.load(file, map_location="cpu", weights_only=False, mmap=True) for file in files]
    for key, value in about.items():
        if read[-1]["own"]["about"][key] != value:
            raise ConfigError(
                f"{path} is the state of a run with another {key}",
                way_out="the same configuration and model; or resume=False, or another output folder",
            )
    tensors = read[0]["tensors"] | read[-1]["tensors"]
    return tensors, read[-1]["own"]
