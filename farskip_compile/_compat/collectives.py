# SPDX-License-Identifier: Apache-2.0
"""The functional collectives that the models and `comm` call; a part of `_compat`.

Checked by running on torch 2.11.0, 2.13.0 and 2.15.0; presence and signatures by reading on 2.12 and 2.14.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as fc

all_reduce = fc.all_reduce
all_to_all_single = fc.all_to_all_single
wait_tensor = fc.wait_tensor
reduce_scatter = (
    getattr(fc, "reduce_scatter_single", None) or fc.reduce_scatter_tensor
)  # from 2.13 on the old one warns


def _all_gather(value: torch.Tensor, gather_dim: int, group: dist.ProcessGroup) -> torch.Tensor:
    """In the place of `all_gather_tensor`, which Dynamo can trace along the first dimension only until 2.12."""
    gathered: torch.Tensor = fc.all_gather_tensor(value, 0, group)
    return gathered if gather_dim == 0 else torch.cat(gathered.chunk(group.size()), gather_dim)


all_gather = getattr(fc, "all_gather_single", None) or _all_gather

WAIT = torch.ops._c10d_functional.wait_tensor.default
"""Of a launch of `_c10d_functional`; in a graph, and in eager mode."""

# The same of the public ones that write into a tensor of the caller's.
all_gather_in_place = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
reduce_scatter_in_place = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
