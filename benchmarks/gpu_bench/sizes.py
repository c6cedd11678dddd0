# SPDX-License-Identifier: Apache-2.0
"""How large everything is that one run measures: for a GPU, and for a dry run.

Contract: data. A dry run has the same parts, and takes the same way through each, with a model of one layer, fewer
variants, and fewer repetitions.

The timed model has the widths of DeepSeek-V2-Lite (hidden size 2048, 16 heads of latent attention, 64 experts of inner
width 1408, two shared experts), four layers of them, two experts for each token, and a long sequence: attention and
shared experts, under which FarSkip hides communication, are about three quarters of its compute. In four layers, one
exchange in flight is more than the 5 % of all memory that our backend may add by default; with the weights of a whole
model it is not. So more is allowed over links. `small` is for comparisons of values, and for CUDA graphs, which pay
where kernels are short.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_bench.variants import FULL, NONE, OVERLAP, PASSES, PIECES, PLAIN

Overrides = Mapping[str, Any]
LIMITS = {"float32": 1e-5, "bfloat16": 2e-2}
"""Type -> how far results may be off, over the largest number of the right ones."""


@dataclass(frozen=True)
class Sizes:
    """See the module's contract."""

    ranks: int
    """Of the emulated group."""
    timed: Overrides
    small: Overrides
    """Both: what `farskip_compile.models.build` is told; `preset` is "deepseek_v3" unless it is given."""
    tokens: tuple[int, int]
    """Sequences and their length, of the timed model."""
    few: tuple[int, int]
    """The same, of the small one."""
    dtype: str
    """Of the timed model."""
    repetitions: int
    modes: tuple[str, ...]
    """In which ways the compared models are parallel."""
    types: tuple[str, ...]
    """Of what is compared."""
    variants: tuple[str, ...]
    """Compared over the emulated link, in the order in which they are compiled, should time run out."""
    ratios: tuple[float, ...]
    """Communication to compute."""
    planned: float
    """The ratio that schedules are made for."""
    blocks: tuple[int, ...]
    """Of a collective, at the planned ratio, besides none."""
    memory_increase: float
    """Option of our backend over links."""
    alpha: float
    """Seconds of a collective, however small."""
    product: int
    """Rows and columns of the product that is timed."""
    copied: int
    """Bytes of the copy that is timed."""
    calibration: float
    """Seconds."""


GPU = Sizes(
    ranks=8,
    timed={
        "layers": ("moe",) * 4, "hidden_size": 2048, "heads": 16, "query_rank": None, "kv_rank": 512,
        "nope_head_dim": 128, "rope_head_dim": 64, "value_head_dim": 128, "experts": 64, "top_k": 2,
        "moe_intermediate_size": 1408, "shared_experts": 2, "router_groups": 8, "router_top_groups": 4,
        "vocab_size": 8192,
    },
    small={
        "layers": ("moe", "moe"), "hidden_size": 512, "heads": 8, "experts": 16, "moe_intermediate_size": 256,
        "vocab_size": 512,
    },
    tokens=(1, 16384),
    few=(2, 64),
    dtype="bfloat16",
    repetitions=15,
    modes=("padded", "dropless", "allgather", "tp"),
    types=("float32", "bfloat16"),
    variants=(PLAIN, FULL, PIECES, OVERLAP, NONE, PASSES),
    ratios=(0.25, 0.5, 1.0),
    planned=0.5,
    blocks=(16,),
    memory_increase=0.25,
    alpha=20e-6,
    product=8192,
    copied=2**30,
    calibration=25.0,
)  # fmt: skip

_TINY = {
    "preset": "mixtral", "layers": ("moe",), "hidden_size": 32, "heads": 2, "experts": 4, "shared_experts": 1,
    "vocab_size": 64,
}  # fmt: skip

DRY = Sizes(
    ranks=2,
    timed=_TINY,
    small=_TINY,
    tokens=(2, 8),
    few=(2, 8),
    dtype="float32",
    repetitions=2,
    modes=("padded",),
    types=("float32",),
    variants=(PLAIN, FULL),
    ratios=(0.5,),
    planned=0.5,
    blocks=(1,),
    memory_increase=0.25,
    alpha=20e-6,
    product=64,
    copied=2**20,
    calibration=0.5,
)
