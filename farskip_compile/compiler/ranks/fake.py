# SPDX-License-Identifier: Apache-2.0
"""A process group of one process in place of many, so that a parallel model can be compiled without the other ranks.

Contract: within the block `torch.distributed` is initialised with as many ranks as asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from farskip_compile._compat.distributed import world_group
from farskip_compile._compat.fakes import join_fake_ranks
from farskip_compile.errors import ConfigError


@contextmanager
def fake_ranks(ranks: int, rank: int = 0) -> Iterator[dist.ProcessGroup]:
    """Be one of many ranks in the `with` block, without the others, and yield the process group of all.

    Collectives send nothing and return arbitrary values: capture and compile models in the block, don't run them.

    Args:
        ranks: the number of ranks.
        rank: the rank that this process is.

    Raises:
        ConfigError: no such rank, or a process group exists already.
    """
    if not 0 <= rank < ranks:
        raise ConfigError(f"there is no rank {rank} among {ranks}", way_out=f"0 to {ranks - 1}")
    if world_group() is not None:
        raise ConfigError(
            "torch.distributed is initialised already", way_out="call fake_ranks in a process without a process group"
        )
    join_fake_ranks(ranks, rank)
    try:
        group = world_group()
        assert group is not None
        yield group
    finally:
        dist.destroy_process_group()
