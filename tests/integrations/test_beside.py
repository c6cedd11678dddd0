# SPDX-License-Identifier: Apache-2.0
"""Libraries whose import changes what other tests would see are tested in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.libraries import INSTALLED, LIBRARIES, beside

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("library", [*LIBRARIES, *INSTALLED])
def test_its_tests_pass(library: str) -> None:
    place = Path(__file__).parent / "beside" / library
    files = sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)]
    environment = {**os.environ, "PYTHONPATH": beside(library)} if library in LIBRARIES else dict(os.environ)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=590, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
