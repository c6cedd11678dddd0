# SPDX-License-Identifier: Apache-2.0
"""Pause the cyclic garbage collector while many objects are made and none of them is garbage.

A full collection of a large process walks all of its objects, and takes as long as all passes together.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Switch the collector off inside the block, and back to what it was afterwards."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
