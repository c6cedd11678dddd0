# SPDX-License-Identifier: Apache-2.0
"""What is said of this project in several places is the same in all: targets, extras, versions, addresses, files."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests.compat.environments import ENVIRONMENTS
from tests.structure.project import (
    EXTRAS,
    PROJECT,
    PYPROJECT,
    REPOSITORY,
    named_targets,
    supported_python,
    supported_torch,
    targets,
    texts,
)
from tests.structure.sources import ROOT, own_files

FILES = {".venv/.installed", ".triton/.installed", ".beside/torchao.installed"}
"""Targets that are files, and named somewhere."""
NOT_EXTRAS = {"dev"}
"""What only people who work on this package install."""


def named(pattern: str, *, suffixes: tuple[str, ...] = (".md", ".py", ".yml", ".toml", ".cff")) -> dict[str, str]:
    """What matches, each with a file that holds it."""
    return {match: name for name, text in texts(suffixes=suffixes) for match in re.findall(pattern, text)}


# The Makefile


def test_each_target_that_is_named_exists() -> None:
    found = {target: name for name, target in named_targets()}
    assert {target: name for target, name in found.items() if target not in {*targets(), *FILES}} == {}
    assert {"test", "test-all", "lint", "dist", "compat", ".venv/.installed"} <= set(found)


def test_each_target_stands_in_make_help() -> None:
    assert [name for name, help_line in targets().items() if not help_line] == []
    assert len(targets()) > 10


# Extras


def test_each_extra_that_is_named_exists_and_each_is_named() -> None:
    places = named(r"farskip-compile\[([a-z][a-z, ]*)\]", suffixes=(".md", ".py", ".yml"))
    found = {extra.strip() for listed in places for extra in listed.split(",")}
    assert found - set(EXTRAS) == set()
    assert set(EXTRAS) - found == NOT_EXTRAS


def test_what_is_asked_for_by_several_extras_is_asked_for_alike() -> None:
    ranges: dict[str, set[str]] = {}
    for needs in EXTRAS.values():
        for one in needs:
            if one.name != PROJECT["name"]:
                ranges.setdefault(one.name, set()).add(str(one.specifier))
    assert {name: found for name, found in ranges.items() if len(found) > 1} == {}


# Versions


def test_python_is_the_same_everywhere() -> None:
    allowed, first = SpecifierSet(PROJECT["requires-python"]), supported_python()[0]
    assert str(allowed) == f">={first}"
    assert supported_python() == [f"3.{int(first[2:]) + step}" for step in range(len(supported_python()))]
    assert (PYPROJECT["tool"]["ruff"]["target-version"], PYPROJECT["tool"]["mypy"]["python_version"]) == (
        f"py{first.replace('.', '')}",
        first,
    )
    spelled = named(r"Python (3\.\d+)(?:\+| or newer| and later)")
    assert set(spelled) == {first}, spelled


def test_torch_is_the_same_everywhere() -> None:
    first, *_, last = minors = supported_torch()
    spelled = named(r"torch (2\.\d+) to (2\.\d+)", suffixes=(".md",))
    assert set(spelled) == {(first, last)}, spelled
    tried = [one.name for one in ENVIRONMENTS if one.subject == "torch"]
    assert tried == [f"torch-{minor}" for minor in minors]
    recorded = [row["name"] for row in json.loads((ROOT / "docs" / "compat.json").read_text())]
    assert [name for name in recorded if name.startswith("torch-")] == tried


def test_transformers_is_the_same_everywhere() -> None:
    (needed,) = (one for one in EXTRAS["hf"] if one.name == "transformers")
    spelled = named(r"transformers (5\.\d+) and\s+later", suffixes=(".md",))
    assert len(spelled) == 1
    assert needed.specifier == SpecifierSet(f">={next(iter(spelled))},<6")


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert PROJECT["version"] in changes


# Addresses and files


def test_the_repository_is_the_same_everywhere() -> None:
    spelled = named(r"https://github\.com/[\w.-]+/farskip-compile(?![\w-])")
    assert set(spelled) == {REPOSITORY}, spelled
    owner, name = REPOSITORY.split("/")[-2:]
    assert PROJECT["urls"]["Documentation"] == f"https://{owner}.github.io/{name}/"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_the_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    places = {place for place in re.findall(r"`([\w./-]+)`", text) if "/" in place}
    links = set(re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text))
    assert [one for one in sorted(places | links) if not (ROOT / one).exists()] == []
    assert len(places | links) > 3
    beside = set(re.findall(r"`(\w+\.py)`", text))
    known = {name.rpartition("/")[2] for name in own_files()}
    assert beside <= known


def test_headings_that_are_linked_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for page, heading in re.findall(r"\]\(([\w./-]+\.md)#([\w-]+)\)", text):
        headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert heading in [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings]
