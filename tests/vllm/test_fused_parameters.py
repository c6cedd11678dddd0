# SPDX-License-Identifier: Apache-2.0
"""A manifest compared with a model that holds several parameters in one, as vLLM does."""

from __future__ import annotations

import pytest

from farskip_compile.errors import ManifestError
from farskip_compile.manifest import Manifest
from farskip_compile.manifest.check import check_as_written
from farskip_compile.manifest.fingerprint import Fingerprint
from farskip_compile.manifest.graph_parameters import GraphParameters
from farskip_compile.passes.residual.table import Table

KNOWN = Fingerprint({"model.layers.0.norm.weight": (8,), "model.layers.0.q.weight": (8, 8)}, {})


def shown(**shapes: tuple[int, ...]) -> GraphParameters:
    names = {name.replace("_", "."): shape for name, shape in shapes.items()}
    return GraphParameters(names, tuple(names))


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (shown(layers_0_norm_weight=(8,), layers_0_qkv_weight=(24, 8)), None),
        (shown(layers_0_norm_weight=(16,), layers_0_qkv_weight=(24, 8)), "has shape"),
        (shown(layers_0_bias=(8,)), "no parameter that the graph shows has a name"),
    ],
)
def test_parameters_that_go_by_one_name_are_compared(parameters, reason):
    manifest = Manifest("full", fingerprint=KNOWN, fused=True)
    if reason is None:
        check_as_written(manifest, Table(), parameters)
    else:
        with pytest.raises(ManifestError, match=reason):
            check_as_written(manifest, Table(), parameters)
    with pytest.raises(ManifestError):  # and without `fused` each of them is another model
        check_as_written(Manifest("full", fingerprint=KNOWN), Table(), parameters)


def test_fused_is_not_a_part_of_what_a_manifest_says():
    assert Manifest("full", fused=True).digest == Manifest("full").digest
    assert "fused" not in Manifest("full", fused=True).to_json()
