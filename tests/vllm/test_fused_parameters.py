# SPDX-License-Identifier: Apache-2.0
"""A manifest compared with a model that holds several parameters in one, as vLLM does."""

from __future__ import annotations

import pytest

from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.errors import ManifestError
from farskip_compile.manifest import Manifest
from farskip_compile.manifest.check import check_as_written, check_whole
from farskip_compile.manifest.fingerprint import ParameterFingerprint
from farskip_compile.manifest.graph_parameters import GraphParameters
from farskip_compile.passes.residual.table import Table

KNOWN = ParameterFingerprint({"model.layers.0.norm.weight": (8,), "model.layers.0.q.weight": (8, 8)}, {})


def shown(**shapes: tuple[int, ...]) -> GraphParameters:
    names = {name.replace("_", "."): shape for name, shape in shapes.items()}
    return GraphParameters(names, tuple(names))


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (shown(layers_0_norm_weight=(8,), layers_0_qkv_weight=(24, 8)), None),
        (shown(layers_0_norm_weight=(16,), layers_0_qkv_weight=(24, 8)), "has shape"),
        (shown(layers_0_bias=(8,)), "no parameter of the model has a name"),
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


ALONE = {640: True, 600: True, 576: False, 704: False, 320: False}
OF_TWO = {320: True, 640: True, 300: True, 352: False, 160: False, 0: False}
ROWS = [(ranks, rows, fits) for ranks, found in ((1, ALONE), (2, OF_TWO)) for rows, fits in found.items()]


@pytest.mark.parametrize(("ranks", "rows", "fits"), ROWS)
def test_a_table_of_tokens_may_be_padded_and_no_other_parameter(ranks: int, rows: int, fits: bool) -> None:
    """Sizes that an engine rounds up are not those of another model; those of a sub-block, or of a vector, are."""
    known = ParameterFingerprint({"layers.0.q.weight": (600, 8)}, {"embed.weight": (600, 8), "norm.weight": (600,)})
    manifest = Manifest("full", fingerprint=known, fused=True, rows_multiple=64)

    def check(**shapes: tuple[int, ...]) -> None:
        with fake_ranks(ranks):
            check_as_written(manifest, Table(), shown(**{"norm_weight": (600,), **shapes}))

    if fits:
        check(embed_weight=(rows, 8))
    else:
        with pytest.raises(ManifestError, match=rf"'embed.weight' has shape \[{rows}, 8\]"):
            check(embed_weight=(rows, 8))
    with pytest.raises(ManifestError, match="has shape"):
        check(embed_weight=(640, 16))
    with pytest.raises(ManifestError, match=r"'layers\.0\.q\.weight' has shape"):
        check(layers_0_q_weight=(640, 8))
    with pytest.raises(ManifestError, match=r"'norm\.weight' has shape"):
        check(norm_weight=(640,))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"head.weight": (32, 8)}, None),
        ({"model.layers.1.norm.weight": (8,)}, "uses a parameter 'model.layers.1.norm.weight'"),
        ({"model.layers.0.norm.weight": (16,)}, "has shape"),
        ({"model.layers.0.q.weight": None}, "no sub-block of the model uses a parameter 'model.layers.0.q.weight'"),
        ({"model.layers.0.q.weight": None, "model.layers.0.norm.weight": None, "body.w": (8,)}, "no parameter of the"),
    ],
)
def test_a_whole_model_without_a_graph(changes: dict[str, tuple[int, ...] | None], reason: str | None) -> None:
    """Another model is told by what its sub-blocks have more, less or of other sizes; a head may stand beside."""
    shapes = {name: shape for name, shape in {**KNOWN.shapes, **changes}.items() if shape is not None}
    if reason is None:
        check_whole(Manifest("full", fingerprint=KNOWN), shapes)
    else:
        with pytest.raises(ManifestError, match=reason):
            check_whole(Manifest("full", fingerprint=KNOWN), shapes)
