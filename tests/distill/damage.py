# SPDX-License-Identifier: Apache-2.0
"""Files of a run that are damaged after they were written: what the tests of states, caches and metrics share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from farskip_compile.errors import FarSkipError
from tests.distill.common import batches

Damage = Callable[[Path], None]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DATA = batches(3)


def result_of(function: Callable[[], Any]) -> Any:
    """What it returns, or the error that it raises; any other exception is a failure."""
    try:
        return function()
    except FarSkipError as error:
        return error


def changed(draw: st.DrawFn, length: int, is_text: bool) -> Damage:
    """A byte is another, or the end is missing; for text more than the last line end."""
    if draw(st.booleans()):
        cut = draw(st.integers(0, length - 1 - is_text))
        return lambda file: os.truncate(file, cut)
    place, mask = draw(st.integers(0, length - 1 - is_text)), draw(st.integers(1, 255))

    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[place] ^= mask
        file.write_bytes(content)

    return flip


@st.composite
def damages(draw: st.DrawFn, file: Path) -> Damage:
    return changed(draw, file.stat().st_size, file.suffix == ".json")


class Kept:
    """Everything in a folder, to be put back after each example."""

    def __init__(self, folder: Path, copy: Path) -> None:
        self.folder, self.copy = folder, copy
        shutil.copytree(folder, copy)
        self.files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())

    def again(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.copy, self.folder)
