# SPDX-License-Identifier: Apache-2.0
"""One line of the source that is wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SourceFault:
    """A line that is replaced."""

    file: str
    old: str
    new: str
    tests: str
    """Arguments of pytest."""
