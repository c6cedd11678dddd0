# SPDX-License-Identifier: Apache-2.0
"""Each test begins and ends with nothing compiled and nothing reported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import farskip_compile


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    farskip_compile.reports().clear()
    yield
    torch.compiler.reset()
