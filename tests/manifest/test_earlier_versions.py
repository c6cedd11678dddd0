# SPDX-License-Identifier: Apache-2.0
"""Manifests that earlier versions wrote still load, and mean what they meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from farskip_compile import describe, load_manifest
from farskip_compile.models import FarSkipForm
from tests.manifest.sample import IDS, compiled, small

SAVED = sorted((Path(__file__).parent / "saved").glob("*.json"))
"""Of `sample.small()`; named by the version that wrote it and the connectivity."""


def test_there_is_one_of_each_kind() -> None:
    assert [path.stem for path in SAVED] == ["0.1.0_full", "0.1.0_table"]


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_it_is_the_manifest_of_today(path: Path) -> None:
    loaded = load_manifest(path)
    assert loaded.versions["farskip-compile"] == "0.1.0"
    today = describe(small(), IDS, connectivity=loaded.connectivity)
    assert (loaded.table, loaded.fingerprint, loaded.digest) == (today.table, today.fingerprint, today.digest)


def test_it_compiles_its_model() -> None:
    model = small()
    with torch.no_grad():
        assert torch.equal(compiled(model, manifest=SAVED[0]), FarSkipForm(model)(IDS))
