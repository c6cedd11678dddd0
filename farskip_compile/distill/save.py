"""Write a healed model as its kind of checkpoint, with the manifest that says which form it is for.

In:    a model with its healed weights, and its manifest.
Out:   a folder. A model with `save_pretrained` (transformers) writes itself: safetensors, `config.json`; the manifest
       is `farskip.json` beside it, and the key `farskip` in `config.json`. Any other: `model.safetensors`, or one file
       for each rank if parameters are spread over ranks, and `farskip.json`.
Never: a checkpoint without its manifest: run in the original wiring, healed weights give fluent nonsense.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from farskip_compile.distill.ranks import Ranks
from farskip_compile.errors import ConfigError
from farskip_compile.manifest import Manifest, save_manifest


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
