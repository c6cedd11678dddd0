# SPDX-License-Identifier: Apache-2.0
"""The workflows on GitHub: pinned, with few rights, on the versions that pyproject.toml names.

What a workflow may say at all is checked there by actionlint and zizmor (.github/workflows/lint.yml).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.structure.project import REPOSITORY, supported_python, supported_torch
from tests.structure.sources import ROOT

FOLDER = ROOT / ".github" / "workflows"
NAMES = sorted(file.name for file in FOLDER.glob("*.yml"))
FORMS = sorted(file.name for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
MAY_WRITE = {("docs.yml", "publish"): {"pages", "id-token"}, ("release.yml", "publish"): {"id-token"}}
"""Who may do more than read this repository, and what."""


def workflow(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return found


def steps(name: str) -> Iterator[dict[str, Any]]:
    for job in workflow(name)["jobs"].values():
        yield from job.get("steps", [])


def test_there_are_some() -> None:
    assert {"tests.yml", "lint.yml", "docs.yml", "release.yml"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_pinned_by_commit_with_their_version_beside(name: str) -> None:
    used = re.findall(r"uses: *(.*)", (FOLDER / name).read_text(encoding="utf-8"))
    assert used
    pinned = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+(\.\d+)*")
    assert [one for one in used if not pinned.fullmatch(one) and not one.startswith("./.github/workflows/")] == []


def test_an_action_has_one_version() -> None:
    used = {one for name in NAMES for one in re.findall(r"uses: ([\w-]+/[\w-]+@.*)", (FOLDER / name).read_text())}
    assert len(used) == len({one.partition("@")[0] for one in used})


@pytest.mark.parametrize("name", NAMES)
def test_rights_are_to_read_and_runs_end(name: str) -> None:
    found = workflow(name)
    assert found["permissions"] == {"contents": "read"}
    for job, said in found["jobs"].items():
        assert set(said.get("permissions", {})) == MAY_WRITE.get((name, job), set())
        assert "timeout-minutes" in said or "uses" in said, job
    for step in steps(name):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_the_matrix_is_what_is_supported() -> None:
    matrix = workflow("tests.yml")["jobs"]["versions"]["strategy"]["matrix"]
    first, *_, last = supported_torch()
    assert matrix["python"] == supported_python()
    assert matrix["environment"] == [f"torch-{last}"]
    assert matrix["include"] == [{"python": supported_python()[0], "environment": f"torch-{first}"}]


def test_a_nightly_torch_may_fail_and_nothing_else() -> None:
    jobs = workflow("tests.yml")["jobs"]
    assert [name for name, job in jobs.items() if job.get("continue-on-error")] == ["nightly"]


def test_what_is_published_was_tested_built_by_make_and_tried() -> None:
    jobs = workflow("release.yml")["jobs"]
    assert jobs["publish"]["needs"] == ["tests", "build"]
    assert jobs["tests"]["uses"] == "./.github/workflows/tests.yml"
    runs = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert [run for run in runs if run.startswith("make dist")]
    assert [run for run in runs if "dist/*.whl" in run and "farskip explain" in run]
    (upload,) = (step for step in jobs["publish"]["steps"] if "pypi-publish" in step["uses"])
    assert upload["with"] == {"attestations": True}, "a password would end trusted publishing"


@pytest.mark.skipif(not (ROOT / "mkdocs.yml").exists(), reason="no site is configured")
def test_what_is_published_of_the_site_is_what_is_built() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (folder,) = re.findall(r"^site_dir: (\S+)$", text, re.MULTILINE) or ["site"]
    (upload,) = (step for step in steps("docs.yml") if "upload-pages-artifact" in step.get("uses", ""))
    assert upload["with"] == {"path": folder}


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_whole(form: str) -> None:
    said = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / form).read_text(encoding="utf-8"))
    if form == "config.yml":
        assert said["contact_links"][0]["url"] == f"{REPOSITORY}/security/advisories/new"
    else:
        assert {"name", "description", "body"} <= set(said)
        fields = [one["id"] for one in said["body"]]
        assert len(fields) == len(set(fields)) > 1
