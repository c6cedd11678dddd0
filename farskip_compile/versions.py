# SPDX-License-Identifier: Apache-2.0
"""The versions of other packages that this package works with, read off its own installed metadata.

Never: imports a package; judges one that is not installed, or that the metadata gives no range for.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib import metadata
from typing import NamedTuple


class VersionError(ImportError):
    """A package is too old for this package to be imported beside it."""


class VersionConflict(NamedTuple):
    """A version outside of the range that works."""

    package: str
    found: str
    wanted: str
    """The range as text: `>=5.20,<6`."""
    is_older: bool

    def __str__(self) -> str:
        return f"{self.package} {self.found} is installed; farskip-compile works with {self.package} {self.wanted}"

    @property
    def is_other_major(self) -> bool:
        """Return whether the version differs from the lowest of the range in its first number."""
        return _release(self.found)[0] != _release(self.wanted)[0]


def version_conflict(package: str, version: str | None = None) -> VersionConflict | None:
    """Return how `version` of `package`, or else the installed version, lies outside of the range that works."""
    name = package.replace("_", "-")
    wanted = _ranges().get(name, "")
    try:
        found = version or metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
    bounds = [(bound[0], _release(bound)) for bound in wanted.split(",") if bound]
    is_older = any(sign == ">" and _release(found) < release for sign, release in bounds)
    is_newer = any(sign == "<" and _release(found) >= release for sign, release in bounds)
    return VersionConflict(name, found, wanted, is_older) if is_older or is_newer else None


def older_version(package: str, version: str) -> str:
    """Return the line about a `version` below the range that works, or an empty text."""
    conflict = version_conflict(package, version)
    return str(conflict) if conflict is not None and conflict.is_older else ""


@functools.cache
def _ranges() -> Mapping[str, str]:
    """Return the range by package. Only `>=` and `<` are ranges; `==` binds who installs an extra."""
    try:
        lines = metadata.requires("farskip-compile") or ()
    except metadata.PackageNotFoundError:  # sources that are not installed
        return {}
    found = (re.match(r"([\w.-]+)(?:\[.*\])?\s*((?:(?:>=|<)[\d.]+,?)+)", line) for line in lines)
    return {match[1]: ",".join(sorted(match[2].split(","), reverse=True)) for match in found if match}


def _release(version: str) -> tuple[int, ...]:
    """Return the first numbers in a version or bound, without zeros at the end: (5, 20) for `>=5.20.0.dev1`."""
    numbers = re.search(r"\d+(\.\d+)*", version)
    return tuple(map(int, re.sub(r"(\.0+)+$", "", numbers[0] if numbers else "0").split(".")))
