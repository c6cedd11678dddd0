# SPDX-License-Identifier: Apache-2.0
"""The programs that Inductor makes, as source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from torch._inductor.graph import GraphLowering


@contextmanager
def captured_code() -> Iterator[list[str]]:
    """The programs that Inductor compiles or loads within the block, in order, each once."""
    found: list[str] = []

    def save(code: str) -> None:
        if code not in found:
            found.append(code)

    with mock.patch.object(GraphLowering, "save_output_code", save):
        yield found
