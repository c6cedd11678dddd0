# SPDX-License-Identifier: Apache-2.0
"""What is demanded of the text of every failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def failure_of(assertion: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The text with which it fails: plain, and narrow enough for a terminal."""
    with pytest.raises(AssertionError) as caught:
        assertion(*args, **kwargs)
    text = str(caught.value)
    wide = [line for line in text.splitlines() if len(line) > 80]
    assert wide == [] or caught.value.__cause__ is not None, wide
    assert text.isascii()
    assert "\x1b" not in text
    return text
