# SPDX-License-Identifier: Apache-2.0
"""The healed model on disk.

In:    a healed model and its manifest.
Out:   a checkpoint of the model's own kind. A model with `save_pretrained` (transformers) writes itself: safetensors,
       `config.json`; the manifest is `farskip.json` beside it, and the key `farskip` in `config.json`, which is
       guarded: only this package loads it (`guard/`). Any other: `model.safetensors`, or one file for each rank if
       parameters are spread over ranks, and `farskip.json`. Distributed tensors are put together, one at a time on all
       ranks; the first rank, which writes, keeps them in the memory of its CPU until then.
Never: a checkpoint without its manifest: in the original wiring, healed weights give fluent nonsense. The folder
       appears whole or not at all (`whole_folders`), whatever ends the process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from farskip_compile.base.json_files import replacing
from farskip_compile.base.writing.whole_folders import FolderInTheMaking
from farskip_compile.errors import ManifestError
from farskip_compile.healing.causal.fully_sharded import at_rest
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.causal.tensor_files import library
from farskip_compile.manifest import Manifest, write_manifest
from farskip_compile.manifest.files import CONFIG


def save_checkpoint(
    model: nn.Module,
    manifest: Manifest,
    folder: Path,
    ranks: TrainingRanks,
    *,
    also: Callable[[Path], Any] = lambda folder: None,
) -> None:
    """Write `model`, on all ranks.

    Args:
        model: healed.
        manifest: which form its weights are for.
        folder: it appears when all is in it. An earlier checkpoint in it is replaced, other files stay.
        ranks: all of them call.
        also: writes what else belongs into the folder that it is given, on the first rank: the tokenizer.

    Raises:
        ConfigError: safetensors is missing.
        ManifestError: the folder can't be written.
    """
    first = ranks.rank == 0
    library()
    from safetensors import SafetensorError

    making = FolderInTheMaking.of(folder)
    token, is_there = ranks.sum(*((int(making.token, 16), making.is_there) if first else (0, 0)))
    making = FolderInTheMaking(making.target, f"{int(token):012x}", bool(is_there))  # as the first rank has it
    try:
        if first:
            making.begin()
        ranks.barrier()
        at_rest(model)
        _write(model, making.path, ranks)
        ranks.barrier()
        if first:
            also(making.path)
            write_manifest(manifest, making.path)
            if (config := making.path / CONFIG).exists():
                write_manifest(manifest, config)
            making.finish()
        ranks.barrier()
    except (OSError, SafetensorError) as error:
        raise ManifestError(
            f"can't write the checkpoint {folder}: {error}", way_out="room on the disk, and the right to write there"
        ) from error
    finally:
        if first:
            making.end()


def _write(model: nn.Module, folder: Path, ranks: TrainingRanks) -> None:
    first = ranks.rank == 0
    state = _whole(model, keep=first or bool(ranks.parts)) if ranks.is_sharded else None
    pretrained: Any = getattr(model, "save_pretrained", None)
    if not callable(pretrained):
        _save_tensors(model if state is None else _Holding(state), folder, ranks)
    elif state is None:
        pretrained(folder, is_main_process=first)
    elif first:
        pretrained(folder, state_dict=state)


def _save_tensors(model: nn.Module, folder: Path, ranks: TrainingRanks) -> None:
    name = f"model-rank-{ranks.rank:05d}-of-{ranks.size:05d}.safetensors" if ranks.parts else "model.safetensors"
    if ranks.parts or ranks.rank == 0:
        with replacing(folder / name) as temporary:
            library().save_model(model, str(temporary))


@torch.no_grad()
def _whole(model: nn.Module, *, keep: bool) -> dict[str, torch.Tensor]:
    """The state of a sharded model with whole tensors, on the CPU, on all ranks; a tied one is one tensor. Empty where
    it is not to be kept."""
    found: dict[str, torch.Tensor] = {}
    known: dict[int, torch.Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in known:
            spread: Any = value.detach()
            whole = spread.full_tensor() if hasattr(spread, "full_tensor") else spread
            known[id(value)] = whole.cpu() if keep else torch.empty(0)
        found[name] = known[id(value)]
    return found if keep else {}


class _Holding(nn.Module):
    """A module that is nothing but its state: safetensors asks for a module, since it leaves out tied names."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._state = state

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """What it was made of."""
        return self._state
