# SPDX-License-Identifier: Apache-2.0
"""What a fold did: plain data.

Contract: names and numbers; to JSON for `--json`, manifests and states.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from farskip_compile.base.json_files import JsonRecord


@dataclass(frozen=True)
class LeftAlone:
    """Something that reads a changed value, and was not changed."""

    row: str
    """Name of the sub-block."""
    parameter: str
    """Empty: no parameter, but an operator or all of the row."""
    reason: str
    """Why it can't be folded."""


@dataclass(frozen=True)
class FoldedRead:
    """One value that a changed row reads, or one term that it adds."""

    row: str
    """Name of the sub-block."""
    parameters: tuple[str, ...]
    """Into which the matrix was multiplied."""
    explained: float
    """Fraction of the squared difference from the original, on calibration tokens that were not fitted, that the matrix
    takes away."""
    ridge: float
    """Of the mean of the Gram matrix's diagonal."""
    kl: float
    """Held-out KL from the original, nats per token, with this read folded."""
    kl_before: float
    """Likewise, before it was."""
    accepted: bool
    """Whether the KL fell; else the parameters are as they were."""
    outputs: bool = False
    """A term that the row adds."""


@dataclass(frozen=True)
class Folded(JsonRecord):
    """The result of a fold."""

    ALSO_WRITTEN = ("repaired",)

    reads: tuple[FoldedRead, ...]
    """What was tried, in order."""
    left_alone: tuple[LeftAlone, ...]
    """What could not be."""
    kl_before: float
    """Held-out, nats per token, rewired."""
    kl_after: float
    """Folded."""
    tokens: int
    """Calibration tokens of all ranks, those included that ridges were chosen by."""
    held_out_tokens: int = 0
    """By which changes were judged."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else is known of how it was made."""

    @property
    def repaired(self) -> float:
        """Fraction of the KL that the fold took away."""
        return 1.0 - self.kl_after / self.kl_before if self.kl_before else 0.0
