# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.faults`: make every fault, and print what became of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(["-s", "-p", "no:cacheprovider", str(Path(__file__).parent), *sys.argv[1:]]))
