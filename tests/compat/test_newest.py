# SPDX-License-Identifier: Apache-2.0
"""What `make newest` says of a run: which package holds, and what fails."""

from __future__ import annotations

import pytest

from tests.compat import newest
from tests.compat.build import ROOT
from tests.compat.outcome import Tally

FAILURES = {
    "tests.prepare.test_loops.test_a": "",
    "tests.prepare.test_loops.test_b": "",
    "tests.test_backend.test_c": "",
}


@pytest.mark.parametrize(
    ("tests", "failures", "said"),
    [
        (("tests/prepare", "tests/zoo"), FAILURES, "2 fail: test_a, test_b"),
        (("tests/test_backend.py::test_c",), FAILURES, "1 fail: test_c"),
        (("tests/zoo",), FAILURES, "holds"),
        (None, FAILURES, "no test of its own"),
        (None, {}, "holds"),
    ],
)
def test_a_package_fails_by_its_own_tests(tests: tuple[str, ...] | None, failures: dict[str, str], said: str) -> None:
    assert newest.verdict(Tally(5, len(failures), 0, 1.0, failures), tests) == said


def test_a_run_without_a_report_or_a_test_does_not_hold() -> None:
    assert newest.verdict(None, ("tests/zoo",)) == "did not finish"
    assert newest.verdict(Tally(0, 0, 3, 1.0, {}), ("tests/zoo",)) == "no test ran"


def test_locked_versions() -> None:
    text = (
        "# a comment\ntorch==2.13.0\nnumpy==2.4.6 ; python_version < '3.12'\nnumpy==2.5.5 ; python_version >= '3.12'\n"
    )
    assert newest.locked_versions(text) == {"torch": "2.13.0", "numpy": "2.4.6 or 2.5.5"}


def test_what_is_run_is_there() -> None:
    names = [environment.name for environment, _ in newest.plan()]
    assert names[0] == "newest"
    assert names[-1].startswith("vllm-")
    assert {f"torch-2.{minor}" for minor in range(11, 15)} < set(names)
    paths = {test.partition("::")[0] for _, tests in newest.plan() for test in tests}
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert {*newest.CHECKS} <= {*newest.asked_for(), "torchtitan"}
