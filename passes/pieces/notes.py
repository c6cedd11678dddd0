# SPDX-License-Identifier: Apache-2.0
"""What is said of a launch before differentiation, and read after it: that it is a piece, or why it stays whole.

Contract: kept in `meta["custom"]`, which AOTAutograd carries over to the ATen nodes that it traces, forward and
backward. The notes are for reports, and keep pieces from being cut again; nothing else depends on them.
"""

from __future__ import annotations

from torch import fx

from farskip_compile.passes.residual.tags import CUSTOM

PIECES = "farskip_pieces"
"""Key: the number of pieces that a launch is one of, as text; or why it is whole."""


ALONG = "farskip_pieces_along"
"""Key: what the rows of a piece are, as text."""


def note(node: fx.Node, text: str, along: str = "") -> None:
    """Say of a launch what became of it; of a piece, what its rows are."""
    node.meta[CUSTOM] = {**node.meta.get(CUSTOM, {}), PIECES: text, ALONG: along}


def noted(node: fx.Node) -> str:
    """What was said of a launch; empty if nothing."""
    return str(node.meta.get(CUSTOM, {}).get(PIECES, ""))


def noted_along(node: fx.Node) -> str:
    """What the rows of a piece are; empty if nothing was said."""
    return str(node.meta.get(CUSTOM, {}).get(ALONG, ""))


def is_piece(node: fx.Node) -> bool:
    """Whether a launch is a piece of an exchange."""
    return noted(node).isdigit()
