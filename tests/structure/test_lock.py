# SPDX-License-Identifier: Apache-2.0
"""The lock holds each version that is installed here, and names each package that pyproject.toml asks for."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.structure.project import EXTRAS, PYPROJECT, REQUIRED, supported_python
from tests.structure.sources import ROOT

OWN = "farskip-compile"
LOCKED = [
    Requirement(line) for line in (ROOT / "lock.txt").read_text().splitlines() if line and not line.startswith("#")
]
MADE_BY_MAKE = Path(sys.prefix) == ROOT / ".venv"
MAKEFILE = (ROOT / "Makefile").read_text()


def locked(python: str) -> dict[str, Version]:
    """Return the locked version of each package for one minor version of Python on Linux."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    found: dict[str, Version] = {}
    for one in LOCKED:
        if one.marker is None or Marker(str(one.marker)).evaluate(environment):
            (pin,) = one.specifier
            assert pin.operator == "=="
            found[canonicalize_name(one.name)] = Version(pin.version)
    return found


def asked() -> Iterator[Requirement]:
    """Return what the targets of the Makefile install, as pyproject.toml says it."""
    yield from REQUIRED
    yield from EXTRAS["dev"]
    for group in PYPROJECT["dependency-groups"].values():
        yield from map(Requirement, group)


@pytest.mark.parametrize("python", supported_python())
def test_what_is_asked_for_is_locked_within_its_range(python: str) -> None:
    versions = locked(python)
    wrong = {
        str(one) for one in asked() if one.name != OWN and versions[canonicalize_name(one.name)] not in one.specifier
    }
    assert wrong == set()


@pytest.mark.skipif(not MADE_BY_MAKE, reason="an environment that the Makefile has not made")
def test_what_is_installed_is_locked() -> None:
    versions = locked(f"{sys.version_info.major}.{sys.version_info.minor}")
    installed = importlib.metadata.distributions(path=[sysconfig.get_paths()["purelib"]])
    found = {canonicalize_name(one.name): Version(Version(one.version).public) for one in installed}
    del found[OWN]
    assert {name: version for name, version in found.items() if versions.get(name) != version} == {}


def test_each_installation_of_the_makefile_reads_the_lock() -> None:
    installs = re.findall(r"^.*(?:pip install|\$\(PIP\)).*$", MAKEFILE, re.MULTILINE)
    assert len(installs) > 8
    assert [one for one in installs if "$(LOCKED)" not in one and not one.startswith("PIP ")] == []
