# SPDX-License-Identifier: Apache-2.0
"""What came of one environment, read off the reports of its tests.

Contract: an outcome is one row: status, versions, figures, names of what failed. It goes to JSON and back unchanged. A
run that made no report, or no test, has not passed.
"""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.compat.defects import Defect

PASSED = "passed"
FAILED = "failed"
MISSING = "private API missing"
UNAVAILABLE = "not available on the index"
NOT_BUILT = "could not be installed"
UNFINISHED = "did not finish"
NEVER = "never tried"


@dataclass(frozen=True)
class Outcome:
    """One row of the table."""

    name: str
    status: str
    date: str
    """Of the run, as 2026-11-26."""
    versions: dict[str, str] = field(default_factory=dict)
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    """Of the tests, installation left out."""
    failures: list[str] = field(default_factory=list)
    """Tests that failed, or private names that are missing."""
    excused: list[str] = field(default_factory=list)
    """Tests that failed for a defect of PyTorch itself."""
    defects: list[str] = field(default_factory=list)
    """These defects."""
    reason: str = ""
    """Why there was nothing to run."""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Outcome:
        """Of what `to_json` gave."""
        return cls(**data)


@dataclass(frozen=True)
class Tally:
    """What one report of pytest counts."""

    passed: int
    failed: int
    skipped: int
    seconds: float
    failures: dict[str, str]
    """Test -> all that it said."""


def tally(report: Path) -> Tally | None:
    """What a JUnit report of pytest says; None if there is none, or half of one."""
    try:
        root = ElementTree.parse(report).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    cases = list(root.iter("testcase"))
    failed: dict[str, str] = {}
    skipped = 0
    for case in cases:
        bad = [part for part in case if part.tag in ("failure", "error")]
        if bad:  # a test that fails, and its clean-up too, counts once
            said = "\n".join(f"{part.get('message', '')}\n{part.text or ''}" for part in bad)
            failed[_name(case)] = failed.get(_name(case), "") + said
        elif case.find("skipped") is not None:
            skipped += 1
    seconds = sum(float(suite.get("time", 0)) for suite in root.iter("testsuite"))
    return Tally(len(set(map(_name, cases))) - len(failed) - skipped, len(failed), skipped, seconds, failed)


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '')}.{case.get('name', '')}".strip(".")


def missing_names(counted: Tally) -> list[str]:
    """The private names, with the place that needs each, that the test of them has missed."""
    found = re.findall(r"^E?\W*missing: (\S+ \([^)]*\))", "\n".join(counted.failures.values()), re.MULTILINE)
    return list(dict.fromkeys(found))


def outcome(
    name: str,
    date: str,
    versions: dict[str, str],
    private: Tally | None,
    core: Tally | None,
    defects: Sequence[Defect] = (),
    reason: str = "",
) -> Outcome:
    """The row of an environment that was built.

    Args:
        name: of the environment.
        date: of today.
        versions: what is installed in it.
        private: report of the test of private names.
        core: report of the core tests; None if they were not run, or did not finish.
        defects: those that the installed torch has been shown to have.
        reason: why tests were not run.
    """
    if private is None:
        return Outcome(name, UNFINISHED, date, versions, reason=reason)
    base = Outcome(
        name, FAILED, date, versions, private.passed, private.failed, private.skipped, round(private.seconds, 1)
    )
    if private.failed:
        names = missing_names(private)
        return replace(base, status=MISSING if names else FAILED, failures=names or list(private.failures))
    if core is None:
        return replace(base, status=UNFINISHED, reason=reason)
    excuses = {test: defect.what for test, said in core.failures.items() for defect in defects if defect.words in said}
    left = [test for test in core.failures if test not in excuses]
    return replace(
        base,
        status=PASSED if core.passed and not left else FAILED,
        passed=private.passed + core.passed,
        failed=len(left),
        skipped=private.skipped + core.skipped,
        seconds=round(private.seconds + core.seconds, 1),
        failures=left,
        excused=list(excuses),
        defects=sorted(set(excuses.values())),
    )
