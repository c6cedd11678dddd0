"""Settings of the whole suite: seeded, no deadline (a compile takes what it takes), fresh compiler state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

import farskip_compile

settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.set_num_threads(1)
    torch.compiler.reset()
    farskip_compile.clear_reports()
    yield
    torch.compiler.reset()
