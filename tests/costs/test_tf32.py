# SPDX-License-Identifier: Apache-2.0
"""Whether products may use TF32, by any of the settings that PyTorch has had for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import fx

from farskip_compile import FarSkipConfig
from farskip_compile.compiler.ranks.identity import identity_of
from farskip_compile.costs import load_profile
from farskip_compile.costs.estimates import Estimates
from farskip_compile.costs.operators import tf32_allowed


def old(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed


def of_matmul(allowed: bool) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "none"


def of_all(allowed: bool) -> None:
    torch.backends.fp32_precision = "tf32" if allowed else "none"


def by_name(allowed: bool) -> None:
    torch.set_float32_matmul_precision("high" if allowed else "highest")


@pytest.fixture
def nothing_said() -> Iterator[None]:
    """What is said of products holds whatever is said of all; "none": nothing is."""

    def forget() -> None:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision = torch.backends.fp32_precision = "none"

    forget()
    yield
    forget()


@pytest.mark.usefixtures("nothing_said")
@pytest.mark.parametrize("say", [old, of_matmul, of_all, by_name])
def test_tf32_is_allowed_by_any_of_the_settings(say: Any) -> None:
    """And is a part of the identity of a compile: ranks with other settings would make other schedules."""
    module = fx.GraphModule({}, fx.Graph())

    def now() -> tuple[bool, str]:
        Estimates(module.graph, load_profile("h100"))  # does not raise, whichever was used
        return tf32_allowed(), identity_of(FarSkipConfig(), module, None)

    before = now()
    say(True)
    allowed = now()
    say(False)
    assert (before[0], allowed[0]) == (False, True)
    assert before[1] != allowed[1]
    assert now() == before
