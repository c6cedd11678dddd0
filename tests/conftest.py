"""Settings of the whole suite: seeded, no deadline (a compile takes what it takes), fresh compiler state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, settings
from torch.testing._internal.distributed.fake_pg import FakeStore

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


@pytest.fixture
def two_ranks() -> Iterator[Any]:
    """Rank 0 of two, on a process group that sends nothing: compiling needs no more."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
