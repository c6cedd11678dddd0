# SPDX-License-Identifier: Apache-2.0
"""Why a model can't be rewired: a plain record."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RefusedModel:
    """Why a model can't be rewired as asked."""

    error: str
    """Name of the exception's class."""
    reason: str
    """What is wrong, one sentence."""
    where: str = ""
    """Layer, node and source line, as far as they are known."""
    way_out: str = ""
    """What the user can do about it."""

    def to_json(self) -> dict[str, str]:
        """Plain data for `json.dumps`."""
        return {"error": self.error, "reason": self.reason, "where": self.where, "way_out": self.way_out}
