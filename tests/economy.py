"""What all processes of the tests do to spend less time on what no test is about."""

from __future__ import annotations

import gc
from pathlib import Path


def collect_rarely() -> None:
    """What is imported stays, and need not be walked; a compile makes many objects and little garbage."""
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)


def share_headers(cache: Path) -> None:
    """Give a compile cache that is to be empty the headers that this machine has precompiled.

    No test is about them, and they take the compiler 15 s for each new cache.
    """
    from torch._inductor import codecache

    headers = getattr(codecache, "_HEADER_DIR", None)  # a private name: without it the compiler takes its time
    if headers is not None:
        Path(headers).mkdir(parents=True, exist_ok=True)
        (cache / Path(headers).name).symlink_to(headers)
