# SPDX-License-Identifier: Apache-2.0
"""Puts `benchmarks/` on the path, as running one of its scripts does."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
