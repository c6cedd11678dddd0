"""The functional collectives that the models and `comm` call; a part of `_compat`.

Checked by running on torch 2.13.0; presence and signatures by reading on 2.11, 2.12, 2.14 and 2.15.
"""

from __future__ import annotations

import torch.distributed._functional_collectives as fc

__all__ = ["all_gather", "all_reduce", "all_to_all_single", "reduce_scatter", "wait_tensor"]

all_reduce = fc.all_reduce
all_to_all_single = fc.all_to_all_single
wait_tensor = fc.wait_tensor
# `*_tensor` until 2.12; from 2.13 on the old names warn.
all_gather = getattr(fc, "all_gather_single", None) or fc.all_gather_tensor
reduce_scatter = getattr(fc, "reduce_scatter_single", None) or fc.reduce_scatter_tensor
