# SPDX-License-Identifier: Apache-2.0
"""What the server of forked ranks has compiled leaves no trace in them."""

from __future__ import annotations

import sys

import torch.distributed as dist

import farskip_compile
from tests.distributed.ranks import run_ranks


def found_on_rank(rank: int, world_size: int) -> tuple[bool, int, int, int]:
    reports, schedules = farskip_compile.reports().compiles, farskip_compile.reports().schedules
    return "tests.distributed.warm" in sys.modules, len(reports), len(schedules), dist.get_world_size()


def test_a_rank_begins_with_nothing_but_what_is_remembered() -> None:
    assert run_ranks(found_on_rank, 2) == [(True, 0, 0, 2)] * 2
