# SPDX-License-Identifier: Apache-2.0
"""Where libraries are that stand beside the environment; see `make .beside/torchao.installed`."""

from __future__ import annotations

import os
from pathlib import Path

LIBRARIES = ("torchao", "deepspeed")
FOLDER = Path(__file__).parents[2] / ".beside"


def beside(library: str) -> str:
    """The PYTHONPATH with which a process has `library`."""
    folder = FOLDER / library
    assert folder.is_dir(), f"make .beside/{library}.installed"
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
