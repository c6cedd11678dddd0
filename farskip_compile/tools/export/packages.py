# SPDX-License-Identifier: Apache-2.0
"""The manifest in a program, in a file that `torch.export.save` wrote, and in a package of AOTInductor.

Contract: the manifest is in the metadata of the graph, which `torch.export` saves and loads with a program, and in the
metadata of a package that was made with `inductor_configs=metadata_of(program)`. It is not compared with weights or
code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from farskip_compile._compat.names import PACKAGE_METADATA
from farskip_compile.base.reading.strict_json import parse_json
from farskip_compile.errors import ManifestError
from farskip_compile.manifest.files import KEY, read_manifest
from farskip_compile.manifest.record import Manifest

CUSTOM = "custom"
"""The key of a graph's metadata that `torch.export.save` saves, as JSON."""
WAY_OUT = "make the program with farskip_compile.export, and the package with inductor_configs=metadata_of(program)"


def put_manifest(program: torch.export.ExportedProgram, manifest: Manifest) -> None:
    """Put the manifest into the metadata of `program`."""
    program.graph_module.meta.setdefault(CUSTOM, {})[KEY] = manifest.to_json()


def manifest_of(exported: Any) -> Manifest:
    """Return the manifest of a program, or of a package of AOTInductor.

    Args:
        exported: an `ExportedProgram`, or a package from `torch._inductor.aoti_load_package`.

    Raises:
        ManifestError: there is no manifest, or a damaged one.
    """
    if isinstance(exported, torch.export.ExportedProgram):
        found = exported.graph_module.meta.get(CUSTOM, {}).get(KEY)
        return _read(found, "the program")
    metadata: Mapping[str, str] = getattr(exported, "get_metadata", dict)()
    try:
        found = parse_json(metadata.get(KEY, "null"))
    except ValueError as error:
        raise ManifestError(f"the manifest in the package is not JSON: {error}", way_out=WAY_OUT) from error
    return _read(found, "the package")


def metadata_of(program: torch.export.ExportedProgram) -> dict[str, Any]:
    """Return options with which AOTInductor writes the manifest of `program` into its package.

    `torch._inductor.aoti_compile_and_package(program, inductor_configs=metadata_of(program))`; with your own
    options: `{**metadata_of(program), ...}`.

    Raises:
        ManifestError: the program has no manifest, or a damaged one.
    """
    return {PACKAGE_METADATA: {KEY: json.dumps(manifest_of(program).to_json())}}


def _read(found: object, place: str) -> Manifest:
    if not isinstance(found, Mapping):
        raise ManifestError(f"no manifest in {place}", way_out=WAY_OUT)
    return replace(read_manifest(found, place), origin=f"in {place}")
