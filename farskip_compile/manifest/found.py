# SPDX-License-Identifier: Apache-2.0
"""The manifest of a checkpoint, wherever it came from.

Contract: of a local folder `farskip.json`, else what its `config.json` holds; of a checkpoint of the Hub, or of a model
in memory, what its configuration holds. None if there is none. A damaged manifest is an error, not "none".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farskip_compile.manifest.amd_keys import has_amd_keys
from farskip_compile.manifest.files import FILE, KEY, load_manifest, read_manifest
from farskip_compile.manifest.record import Manifest


def find_manifest(place: str, config: Any, subfolder: str = "") -> Manifest | None:
    """Return the manifest of the checkpoint at `place`, a folder or a name on the Hub, with configuration `config`.

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
