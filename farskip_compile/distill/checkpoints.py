"""The healed model on disk.

In:    a healed model and its manifest.
Out:   a checkpoint of the model's own kind. A model with `save_pretrained` (transformers) writes itself: safetensors,
       `config.json`; the manifest is `farskip.json` beside it, and the key `farskip` in `config.json`, which is
       guarded: only this package loads it (`guard/`). Any other: `model.safetensors`, or one file for each rank if
       parameters are spread over ranks, and `farskip.json`.
Never: a checkpoint without its manifest: in the original wiring, healed weights give fluent nonsense.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from farskip_compile.causal.ranks import Ranks
from farskip_compile.causal.tensor_files import library
from farskip_compile.json_files import replacing
from farskip_compile.manifest import Manifest, save_manifest
from farskip_compile.manifest.files import CONFIG


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
        if (config := folder / CONFIG).exists():
            save_manifest(manifest, config)
    ranks.barrier()


def _save_tensors(model: nn.Module, folder: Path, ranks: Ranks) -> None:
    name = f"model-rank-{ranks.rank:05d}-of-{ranks.size:05d}.safetensors" if ranks.parts else "model.safetensors"
    if ranks.parts or ranks.rank == 0:
        with replacing(folder / name) as temporary:
            library().save_model(model, str(temporary))
