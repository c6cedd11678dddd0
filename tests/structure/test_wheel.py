"""The wheel holds what stands here: pyproject.toml lists packages and data one by one, and one can be forgotten."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.structure.sources import PLACES, ROOT

BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as pip does it, but by the setuptools of this environment: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in PLACES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (built,) = folder.glob("*.whl")
    return built


def test_every_file_is_in_the_wheel(wheel: Path) -> None:
    expected = set()
    for name, folder in PLACES.items():
        installed = Path("farskip_compile") if name == "farskip_compile" else Path("farskip_compile") / name
        files = (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        expected |= {str(installed / file.relative_to(folder)) for file in files}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert expected - found == set()
    assert found - expected == set()
    for needed in ("passes/residual/__init__.py", "models/__init__.py", "py.typed", "costs/profiles/h100.json"):
        assert f"farskip_compile/{needed}" in found
