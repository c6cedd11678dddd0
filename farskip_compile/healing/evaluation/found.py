# SPDX-License-Identifier: Apache-2.0
"""The manifest of a checkpoint that is to be evaluated rewired.

Contract: what `farskip_compile.manifest.found` finds, or an error that says why there is nothing to run rewired.
"""

from __future__ import annotations

from typing import Any

from farskip_compile.errors import ManifestError
from farskip_compile.manifest.found import find_manifest
from farskip_compile.manifest.record import Manifest


def needed_manifest(place: str, config: Any, subfolder: str = "") -> Manifest:
    """The same, of a checkpoint that is to run rewired.

    Raises:
        ManifestError: there is none, it is damaged, or it says that nothing is rewired.
    """
    manifest = find_manifest(place, config, subfolder)
    if manifest is None:
        raise ManifestError(
            f"{place} has no manifest, so nothing says in which wiring its weights are to run",
            way_out="if it was healed, write its manifest beside it: farskip explain MODEL --manifest CHECKPOINT; if "
            "it is an original, evaluate it with lm-eval's own model: hf",
        )
    if not manifest.changes_function:
        raise ManifestError(
            f"{manifest} says that nothing is rewired, so there is nothing to assert",
            way_out="evaluate it with lm-eval's own model: hf",
        )
    return manifest
