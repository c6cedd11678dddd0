"""How much more than its share the fullest rank gets, where experts are not chosen equally often.

In:    how often each expert is chosen, and how many ranks share the experts.
Out:   rows of the fullest rank over the mean.
Never: depends on a clock or a rank: which expert is the popular one is drawn from a fixed seed.

Experts live on the ranks in their order, as checkpoints number them. By Zipf's law the expert of popularity e is chosen
in proportion to 1 / e^skew, and popularity has nothing to do with the numbering, so that it is shuffled. A token
chooses an expert at most once. Recorded loads stay in their order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from farskip_compile.errors import ConfigError
from farskip_compile.models.skew import shares

SEED = 0


def zipf_loads(experts: int, top_k: int, skew: float) -> list[float]:
    """How often each expert is chosen, by its number; the sum is `top_k`."""
    loads = shares(experts, top_k, skew)
    random.Random(SEED).shuffle(loads)
    return loads


def imbalance(loads: Sequence[float], ranks: int) -> float:
    """Rows of the fullest of `ranks` ranks over the mean.

    Args:
        loads: how often each expert is chosen.
        ranks: that share the experts.

    Raises:
        ConfigError: the experts can't be shared out.
    """
    if len(loads) % ranks:
        raise ConfigError(f"{len(loads)} experts can't be shared out among {ranks} ranks")
    held = len(loads) // ranks
    by_rank = [sum(loads[first : first + held]) for first in range(0, len(loads), held)]
    return max(by_rank) * ranks / sum(by_rank)
