# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml, the Makefile and the pages say of this project, as the tests of this folder read it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.structure.sources import ROOT, own_files

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
REPOSITORY: str = PROJECT["urls"]["Repository"]
EXTRAS = {name: [*map(Requirement, needs)] for name, needs in PROJECT["optional-dependencies"].items()}
REQUIRED = [*map(Requirement, PROJECT["dependencies"])]
TEXTS = (".md", ".py", ".yml", ".toml", ".cff", ".in")


def texts(*, suffixes: tuple[str, ...] = TEXTS) -> Iterator[tuple[str, str]]:
    """The files of this repository that people wrote, with what is in them; not the tests of this folder."""
    for name in own_files():
        if (name.endswith(suffixes) or name in ("Makefile", ".ci/run")) and not name.startswith("tests/structure/"):
            yield name, (ROOT / name).read_text(encoding="utf-8")


def minors(specifier: SpecifierSet, major: int) -> list[str]:
    """The minor versions that a range allows, as "2.11"."""
    return [one for one in (f"{major}.{minor}" for minor in range(100)) if specifier.contains(f"{one}.0")]


def supported_torch() -> list[str]:
    """The minor versions of torch that pyproject.toml allows."""
    (torch,) = (one for one in REQUIRED if one.name == "torch")
    return minors(torch.specifier, 2)


def supported_python() -> list[str]:
    """Those that the classifiers name."""
    named = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", one) for one in PROJECT["classifiers"])
    return [one[1] for one in named if one]


def targets() -> dict[str, str]:
    """The targets of the Makefile that people type, each with its line in `make help`."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = {name for line in re.findall(r"^\.PHONY:(.*)", text, re.MULTILINE) for name in line.split()}
    rules = dict(re.findall(r"^([a-z][a-z-]*):[^=\n]*?(?:## (.*))?$", text, re.MULTILINE))
    return {name: rules[name] for name in phony if name in rules}


def named_targets() -> Iterator[tuple[str, str]]:
    """Where a text says `make NAME`: in code, in a workflow or in a script; prose may make what it wants."""
    for name, text in texts():
        code = re.findall(r"`make ([^`]+)`", text)
        if name.endswith((".md", ".yml")) or name == ".ci/run":
            code += re.findall(r"^(?: *(?:- )?run:| {4,}|if |)\s*make ((?:[a-z./-]+).*)", text, re.MULTILINE)
        for one in code:
            first, *_ = re.split(r"[\s,;:`\"')]", one)
            if re.fullmatch(r"[a-z.][a-z./-]*[a-z]", first):
                yield name, first
