# SPDX-License-Identifier: Apache-2.0
"""Rotary positions: each pair of a head's channels is rotated by an angle that grows with the position.

Contract: tables depend only on the length of the input, so that batch and sequence may be dynamic; or, in a call with a
cache, on the positions of the tokens there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from farskip_compile.models.cache import CacheStep


class Rope(NamedTuple):
    """The positions of a call's tokens, for every attention."""

    cos: torch.Tensor
    """Cosines, [T, width / 2], in float32 at least."""
    sin: torch.Tensor
    """Sines, [T, width / 2]."""
    past: CacheStep | None = None
    """Keys and values of earlier tokens; None: there are none, the first token has position 0."""


def rope_tables(x: torch.Tensor, length: int, width: int, theta: float, past: CacheStep | None = None) -> Rope:
    """Angles for `length` positions and every pair of a head of `width` channels, in `x`'s dtype or a wider one.

    Args:
        x: of the dtype and on the device of the stream.
        length: tokens T per sequence.
        width: channels of a head, even.
        theta: base of the frequencies.
        past: positions after earlier tokens; None: 0 to T - 1.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    pairs = torch.arange(0, width, 2, device=x.device, dtype=wide)  # [width / 2]
    frequencies = theta ** (-pairs / width)
    if past is None:
        positions = torch.arange(length, device=x.device, dtype=wide)  # [T]
    else:
        positions = past.positions.to(wide)
    angles = positions[:, None] * frequencies  # [T, width / 2]
    return Rope(angles.cos(), angles.sin(), past)


def rotate(heads: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Rotate `heads` [B, H, T, width]; channel i is paired with channel i + width / 2."""
    cos, sin = rope.cos.to(heads.dtype), rope.sin.to(heads.dtype)
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
