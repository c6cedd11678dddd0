# SPDX-License-Identifier: Apache-2.0
"""The fixed values that options of several modules and of the command line may have, each list written once.

Contract: imports neither torch nor anything else of this package, so that help and completion of the command line can
read these values at once.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

Rewiring = Literal["full", "attention", "mlp", "lag2", "ladder"]
"""The connectivities that change a model."""
ConnectivityName = Literal[Rewiring, "none"]
"""All connectivities that have a name."""
Inner = Literal["inductor", "aot_eager", "eager"]
"""The compilers of rewired graphs."""

ExpertExchange = Literal["all-reduce", "all-to-all", "all-gather"]
"""The collectives that bring tokens to their experts."""
ProductDtype = Literal["bfloat16", "float8"]
"""The types that matrix products are simulated in."""

DistillRecipe = Literal["default", "paper"]
"""The recipes of `self_distill`."""
HealRecipe = Literal["best", DistillRecipe]
"""The recipes of healing from end to end."""
LossOn = Literal["all", "assistant"]
"""The tokens of conversations that are targets."""

FloatDtype = Literal["float32", "bfloat16", "float16", "float64"]
"""The types that parameters may have."""
TrainingDtype = Literal["float32", "bfloat16"]
"""The types that training computes in."""
ServedDtype = Literal["float32", "float16", "bfloat16"]
"""The types that the answers of vLLM are compared in."""


class Phase(StrEnum):
    """The work of one simulated step."""

    PREFILL = "prefill"
    """All tokens of the prompts: time to first token (TTFT)."""
    DECODE = "decode"
    """One token for each sequence, after a cache of `prompt` tokens."""
    TRAIN = "train"
    """Forward and backward."""
