# SPDX-License-Identifier: Apache-2.0
"""The manifest of a checkpoint, wherever it came from.

Contract: of a local folder `farskip.json`, else what its `config.json` holds; of a checkpoint of the Hub, or of a model
in memory, what its configuration holds. None if there is none. A damaged manifest is an error, not "none".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farskip_compile.errors import ManifestError
from farskip_compile.manifest.amd_keys import has_amd_keys
from farskip_compile.manifest.files import FILE, KEY, load_manifest, read_manifest
from farskip_compile.manifest.record import Manifest


def find_manifest(place: str, config: Any, subfolder: str = "") -> Manifest | None:
    """The manifest of the checkpoint at `place` (a folder, or a name on the Hub), whose configuration is `config`.

    Raises:
        ManifestError: there is one, and it is damaged.
    """
    file = Path(place) / subfolder / FILE
    if file.exists():
        return load_manifest(file)
    content = config.to_dict()
    if isinstance(content.get(KEY), Mapping) or has_amd_keys(content):
        return read_manifest(content, f"the configuration of {place}")
    return None


def needed_manifest(place: str, config: Any, subfolder: str = "") -> Manifest:
    """The same, of a checkpoint that is to run rewired.

    Raises:
        ManifestError: there is none, it is damaged, or it says that nothing is rewired.
    """
    manifest = find_manifest(place, config, subfolder)
    if manifest is None:
        raise ManifestError(
            f"{place} has no manifest, so nothing says in which wiring its weights are to run",
            way_out="if it was healed, write its manifest beside it: farskip manifest MODEL --out CHECKPOINT; if it is "
            "an original, evaluate it with lm-eval's own model: hf",
        )
    if not manifest.changes_function:
        raise ManifestError(
            f"{manifest} says that nothing is rewired, so there is nothing to assert",
            way_out="evaluate it with lm-eval's own model: hf",
        )
    return manifest
