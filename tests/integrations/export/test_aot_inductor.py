# SPDX-License-Identifier: Apache-2.0
"""AOTInductor compiles an exported program: the package computes the rewired model, and holds its manifest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import farskip_compile
from farskip_compile.errors import ManifestError
from farskip_compile.models import FarSkipForm, build
from farskip_compile.tools.export import manifest_of, metadata_of
from tests.compare import relative_difference
from tests.economy import scalar_kernels

IDS = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(0))


def test_a_package_runs_rewired_and_says_so(tmp_path: Path) -> None:
    model = build("mixtral", layers=("moe", "moe"), vocab_size=32, hidden_size=32).eval()
    with torch.no_grad(), scalar_kernels():
        program = farskip_compile.export(model, IDS, dynamic_shapes={"ids": {1: torch.export.Dim("tokens", max=64)}})
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2"), inductor_configs=metadata_of(program)
        )
        package = torch._inductor.aoti_load_package(path)
        assert manifest_of(package) == manifest_of(program)
        for length in (6, 11):
            ids = torch.randint(0, 32, (2, length), generator=torch.Generator().manual_seed(length))
            rewired, as_written = FarSkipForm(model)(ids), model(ids)
            assert relative_difference(package(ids), rewired) < 1e-5
            assert relative_difference(package(ids), as_written) > 1e-2


class Package:
    """What is loaded from a package whose metadata are these."""

    def __init__(self, **metadata: str) -> None:
        self.get_metadata = lambda: metadata


@pytest.mark.parametrize(
    ("package", "reason"),
    [(Package(), "no manifest in the package"), (Package(farskip="{"), "not JSON"), (Package(farskip="{}"), "package")],
)
def test_packages_without_a_manifest(package: Package, reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        manifest_of(package)
