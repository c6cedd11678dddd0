# SPDX-License-Identifier: Apache-2.0
"""Models of a user whose code says things, and takes its time."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from tests import sample_models


def chatty() -> Any:
    """Prints wherever it can."""
    print("building my model")
    os.write(1, b"and so does C++\n")
    return sample_models.with_args()


def slow() -> Any:
    """Never ready."""
    print("building slowly", file=sys.stderr, flush=True)
    time.sleep(100)
