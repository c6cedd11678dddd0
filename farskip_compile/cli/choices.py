# SPDX-License-Identifier: Apache-2.0
"""Options with a fixed set of values: their names in help, in completion and in the messages about other values.

Contract: data, without torch. The values are repeated from the modules that use them, which need torch; a test compares
them with those.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any


class Connectivity(StrEnum):
    """What to rewire."""

    FULL = "full"
    ATTENTION = "attention"
    MLP = "mlp"
    LAG2 = "lag2"
    LADDER = "ladder"
    NONE = "none"


class Rewired(StrEnum):
    """What to rewire, where it must be something."""

    FULL = "full"
    ATTENTION = "attention"
    MLP = "mlp"
    LAG2 = "lag2"
    LADDER = "ladder"


class Phase(StrEnum):
    """The work of a step."""

    PREFILL = "prefill"
    DECODE = "decode"
    TRAIN = "train"


class Exchange(StrEnum):
    """How tokens get to their experts."""

    ALL_REDUCE = "all-reduce"
    ALL_TO_ALL = "all-to-all"
    ALL_GATHER = "all-gather"


class Products(StrEnum):
    """What matrix products compute in."""

    BFLOAT16 = "bfloat16"
    FLOAT8 = "float8"


class Recipe(StrEnum):
    """How to heal."""

    BEST = "best"
    DEFAULT = "default"
    PAPER = "paper"


class LossOn(StrEnum):
    """Which tokens are targets."""

    ASSISTANT = "assistant"
    ALL = "all"


class Inner(StrEnum):
    """What compiles the rewired graphs."""

    INDUCTOR = "inductor"
    AOT_EAGER = "aot_eager"
    EAGER = "eager"


class Part(StrEnum):
    """What `calibrate` can measure alone."""

    COMPUTE = "compute"
    LINKS = "links"


class Float(StrEnum):
    """Types that parameters may have."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT64 = "float64"


class Loaded(StrEnum):
    """Types that a checkpoint is loaded in; `auto`: as it is."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT64 = "float64"


class Trained(StrEnum):
    """Types that training is done in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Served(StrEnum):
    """Types that vLLM's answers are compared in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def among(values: Iterable[StrEnum]) -> str:
    """The values as a list in a sentence: `full, mlp or none`."""
    *most, last = (one.value for one in values)
    return f"{', '.join(most)} or {last}"


def value_of(one: StrEnum | None) -> Any:
    """The value itself, as the `Literal` of the function that takes it; None: the option was left out."""
    return None if one is None else one.value
