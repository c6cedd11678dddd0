# SPDX-License-Identifier: Apache-2.0
"""What transformers and accelerate import wherever it is installed is tested in processes of its own.

`make .beside/torchao.installed`, and the same for each, puts the library into a folder that other tests don't see.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.libraries import LIBRARIES, beside

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("library", LIBRARIES)
def test_its_tests_pass(library: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"tests/integrations/beside/{library}.py",
    ]
    environment = {**os.environ, "PYTHONPATH": beside(library)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=590, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
