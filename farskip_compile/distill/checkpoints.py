"""What a run writes: its state, from which a later run continues to the same result, and the healed model.

In:    everything that changes during a run, as a dictionary that `torch.save` takes; a healed model and its manifest.
Out:   a folder `state-STEP` with a file for each rank; what all ranks have is in the first rank's file only.
       A checkpoint of the model's own kind. A model with `save_pretrained` (transformers) writes itself: safetensors,
       `config.json`; the manifest is `farskip.json` beside it, and the key `farskip` in `config.json`. Any other:
       `model.safetensors`, or one file for each rank if parameters are spread over ranks, and `farskip.json`.
Never: half a state that a later run would accept: a folder gets its name once all ranks have written, and only then is
       the previous state removed. A checkpoint without its manifest: in the original wiring, healed weights give fluent
       nonsense.

A state is read back only with the same configuration, number of ranks, and names and shapes of parameters.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from farskip_compile.distill.ranks import Ranks
from farskip_compile.errors import ConfigError
from farskip_compile.manifest import Manifest, save_manifest

NAME = re.compile(r"state-(\d+)")


def newest_state(folder: Path) -> Path | None:
    """The last complete state in `folder`."""
    found = [(int(match[1]), path) for path in folder.glob("state-*") if (match := NAME.fullmatch(path.name))]
    return max(found)[1] if found else None


def save_state(folder: Path, step: int, tensors: Mapping[str, Any], own: Mapping[str, Any], ranks: Ranks) -> None:
    """Write a state, on all ranks: what belongs to each parameter or buffer, and everything else of this rank."""
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


def load_state(path: Path, ranks: Ranks, about: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `save_state` wrote: tensors, and this rank's own.

    What is in `about` must be equal to what was saved under `about`.

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


def save_checkpoint(model: nn.Module, manifest: Manifest, folder: Path, ranks: Ranks) -> None:
    """Write `model`, on all ranks.

    Raises:
        ConfigError: safetensors is missing.
        ManifestError: the folder can't be written.
    """
    first = ranks.rank == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
    ranks.barrier()
    pretrained: Any = getattr(model, "save_pretrained", None)
    if callable(pretrained):
        pretrained(folder, is_main_process=first)
    else:
        _save_tensors(model, folder, ranks)
    ranks.barrier()
    if first:
        save_manifest(manifest, folder)
        if (config := folder / "config.json").exists():
            save_manifest(manifest, config)
    ranks.barrier()


def _save_tensors(model: nn.Module, folder: Path, ranks: Ranks) -> None:
    try:
        from safetensors.torch import save_model
    except ImportError as error:
        raise ConfigError("safetensors is not installed", way_out="pip install safetensors") from error
    if ranks.parts:
        save_model(model, str(folder / f"model-rank-{ranks.rank:05d}-of-{dist.get_world_size():05d}.safetensors"))
    elif ranks.rank == 0:
        save_model(model, str(folder / "model.safetensors"))
