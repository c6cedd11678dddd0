"""Numbers for symbolic sizes, good enough to estimate costs with.

In:    an ATen graph, forward or backward.
Out:   a function from sizes to numbers.
Never: installs a guard or changes the graph's shape environment.
"""

from __future__ import annotations

import torch
from torch import fx

from farskip_compile._compat import evaluate_size

FALLBACK = 4096


class SizeHints:
    """Callable: a size, which may be symbolic, to a number."""

    def __init__(self, graph: fx.Graph, *, fallback: int = FALLBACK) -> None:
        self.fallback = fallback

    def __call__(self, length: int | torch.SymInt) -> int:
        """The number that stands for `length`."""
        return length if type(length) is int else evaluate_size(length, lambda symbol: self.fallback)
