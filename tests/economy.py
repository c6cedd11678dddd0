"""What all processes of the tests do to spend less time on what no test is about."""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """What is imported stays, and need not be walked; a compile makes many objects and little garbage."""
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)
