# SPDX-License-Identifier: Apache-2.0
"""Libraries that are tested in processes of their own, and where those are that stand beside the environment.

Each of them changes what other tests would see: transformers imports it wherever it is installed, or it replaces
`torch.compile`. See `make .beside/torchao.installed`.
"""

from __future__ import annotations

import os
from pathlib import Path

LIBRARIES = ("torchao", "deepspeed")
"""In folders, beside the environment."""
INSTALLED = ("lightning",)
"""In the environment."""
FOLDER = Path(__file__).parents[2] / ".beside"


def beside(library: str) -> str:
    """The PYTHONPATH with which a process has `library`."""
    folder = FOLDER / library
    assert folder.is_dir(), f"make .beside/{library}.installed"
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
