# SPDX-License-Identifier: Apache-2.0
"""A manifest in the state of a module, where other code refuses to load that state.

In:    a function that gives the manifest of what runs, once something has run.
Out:   a module without parameters, to be made a submodule of what is saved: its extra state is the manifest.
Never: lets weights pass for those of another form: `load_state_dict(strict=True)` into a module that has no such
       submodule fails with an unexpected key, and one that has it compares.

The extra state is bytes in a tensor, which `torch.load(weights_only=True)` and formats of tensors alone take.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from farskip_compile.base.reading.strict_json import parse_json
from farskip_compile.errors import ManifestError
from farskip_compile.manifest import Manifest, read_manifest

NAME = "farskip"
"""Of the submodule."""
KEY = f"{NAME}._extra_state"
"""Of the manifest in the state of the module around it."""


class ManifestState(nn.Module):
    """Holds the manifest for `state_dict`.

    Args:
        current: the manifest of what runs; None: nothing has run yet.
    """

    loaded: Manifest | None
    """What was loaded, and is to be compared with what will run."""

    def __init__(self, current: Callable[[], Manifest | None]) -> None:
        super().__init__()
        self.current = current
        self.loaded = None

    def get_extra_state(self) -> torch.Tensor:
        """The manifest as JSON in bytes; none before anything has run."""
        manifest = self.current()
        text = json.dumps(manifest.to_json()).encode() if manifest is not None else b""
        return torch.tensor(list(text), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Keep a manifest that is loaded, and compare it, if something has run.

        Raises:
            ManifestError: the weights are for another form, or the manifest is damaged.
        """
        self.loaded = _manifest(state, "the checkpoint") if len(state) else None
        manifest = self.current()
        if manifest is not None:
            self.compare(manifest)

    def compare(self, ours: Manifest) -> None:
        """Hold what was loaded, once, against what runs.

        Raises:
            ManifestError: the weights are for another form.
        """
        loaded, self.loaded = self.loaded, None
        if loaded is not None and loaded.digest != ours.digest:
            raise ManifestError(
                f"the weights are for {loaded.connectivity!r}, and the model runs as {ours.connectivity!r}, or with "
                "other layers, sub-blocks or parameters",
                way_out="compile the model with their manifest, which manifest_of_checkpoint of "
                "farskip_compile.integrations.state reads",
            )


def manifest_of_checkpoint(path: str | os.PathLike[str]) -> Manifest:
    """The manifest in a checkpoint of Lightning's that `FarSkip` was there for.

    Args:
        path: the file.

    Raises:
        ManifestError: it has none, or a damaged one.
    """
    found = torch.load(path, map_location="cpu", weights_only=True)
    state = found.get("state_dict", found) if isinstance(found, Mapping) else {}
    if KEY not in state or not len(state[KEY]):
        raise ManifestError(
            f"no manifest in {path}",
            way_out="train with the callback farskip_compile.integrations.lightning.FarSkip, which writes it",
        )
    return _manifest(state[KEY], str(path))


def _manifest(state: Any, origin: str) -> Manifest:
    way_out = "restore the checkpoint"
    if not isinstance(state, torch.Tensor) or state.dtype != torch.uint8 or state.dim() != 1:
        raise ManifestError(f"the manifest in {origin} is not bytes in a tensor", way_out=way_out)
    try:
        data = parse_json(bytes(state.tolist()).decode())
    except ValueError as error:
        raise ManifestError(f"the manifest in {origin} is not JSON: {error}", way_out=way_out) from error
    return replace(read_manifest(data if isinstance(data, Mapping) else {}, origin), origin=f"in {origin}")
