"""What stands in for the real thing: tensors without data, ranks without others; a part of `_compat`."""

from __future__ import annotations

import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily as real_tensors

__all__ = ["FakeTensorMode", "join_fake_ranks", "real_tensors"]


def join_fake_ranks(ranks: int, rank: int) -> None:
    """Initialise `torch.distributed` as one of so many ranks, none of which is there: collectives send nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # importing it makes the backend known

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
