# SPDX-License-Identifier: Apache-2.0
"""The table of edits, by name."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.sheet import Sheet

Edit = Callable[[Sheet], None]
EDITS: dict[str, Edit] = {}


def edit(function: Edit) -> Edit:
    """Enter `function` in `EDITS`."""
    EDITS[function.__name__] = function
    return function
