# SPDX-License-Identifier: Apache-2.0
"""The manifest in a program, in a file that `torch.export.save` wrote, and in a package of AOTInductor.

Contract: it stands in the metadata of the graph that `torch.export` saves and loads with a program, and in those of a
package, which one gets by `inductor_configs=metadata_of(program)`. Weights and code are not looked at: a manifest says
what whoever wrote it has said.
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
"""Key of a graph's metadata that `torch.export.save` saves, as JSON."""
WAY_OUT = "make the program with farskip_compile.export, and the package with inductor_configs=metadata_of(program)"


def put_manifest(program: torch.export.ExportedProgram, manifest: Manifest) -> None:
    """Let `program` say what it is."""
    program.graph_module.meta.setdefault(CUSTOM, {})[KEY] = manifest.to_json()


def manifest_of(exported: Any) -> Manifest:
    """What a program, or a package of AOTInductor, was exported as.

    Args:
        exported: an `ExportedProgram`, or what `torch._inductor.aoti_load_package` returned.

    Raises:
        ManifestError: it has none, or a damaged one.
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
    """Options with which AOTInductor writes the manifest of `program` into its package.

    `torch._inductor.aoti_compile_and_package(program, inductor_configs=metadata_of(program))`; with options of your
    own: `{**metadata_of(program), ...}`.

    Raises:
        ManifestError: the program has no manifest, or a damaged one.
    """
    return {PACKAGE_METADATA: {KEY: json.dumps(manifest_of(program).to_json())}}


def _read(found: object, place: str) -> Manifest:
    if not isinstance(found, Mapping):
        raise ManifestError(f"no manifest in {place}", way_out=WAY_OUT)
    return replace(read_manifest(found, place), origin=f"in {place}")
