# SPDX-License-Identifier: Apache-2.0
"""What stands in for the real thing: tensors without data, ranks without others; a part of `_compat`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch._subclasses.fake_tensor import unset_fake_temporarily as real_tensors

__all__ = ["FakeTensor", "FakeTensorMode", "fake_tensor", "fake_view", "join_fake_ranks", "real_tensors"]


def fake_tensor(
    like: FakeTensor, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: torch.device
) -> FakeTensor:
    """A fake tensor with memory of its own, in the mode of `like`; a tenth of what a factory function takes."""
    value = torch.empty_strided(tuple(size), tuple(stride), dtype=dtype, device="meta")
    return FakeTensor(like.fake_mode, value, device)


def fake_view(of: FakeTensor, size: Sequence[int], stride: Sequence[int], offset: int) -> FakeTensor:
    """A fake tensor in the memory of `of`; an eighth of what `torch.as_strided` takes."""
    with in_kernel_invocation_manager(of.fake_mode):
        value = torch.as_strided(of, tuple(size), tuple(stride), offset)
    return FakeTensor(of.fake_mode, value, of.device)


def join_fake_ranks(ranks: int, rank: int) -> None:
    """Initialise `torch.distributed` as one of so many ranks, none of which is there: collectives send nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # importing it makes the backend known

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
