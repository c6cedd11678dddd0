# SPDX-License-Identifier: Apache-2.0
"""Lets `farskip_compile` be imported from this checkout, installed or not.

In:    a checkout, and a Python that has torch and pydantic.
Out:   `farskip_compile`, with `passes` and `models` inside of it, from the checkout's own folders.
Never: takes another copy that is installed; needs pip, a network, or the package's other dependencies.

`pyproject.toml` maps the top-level folders `passes` and `models` into the package. Here the checkout is one more place
in which the package looks for its members.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def use_checkout() -> None:
    """See the module's contract; to be called before anything of the package is imported."""
    if str(ROOT) not in sys.path[:1]:
        sys.path.insert(0, str(ROOT))
    import farskip_compile

    if str(ROOT) not in farskip_compile.__path__:
        farskip_compile.__path__.append(str(ROOT))
