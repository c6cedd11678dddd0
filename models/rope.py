"""Rotary positions: each pair of a head's channels is turned by an angle that grows with the position.

Contract: tables are made from the length of the input alone, so that batch and sequence may be dynamic.
"""

from __future__ import annotations

import torch

Rope = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, each [T, width / 2], in float32 at least."""


def rope_tables(x: torch.Tensor, length: int, width: int, theta: float) -> Rope:
    """Angles for `length` positions and every pair of a head of `width` channels, in `x`'s dtype or a wider one."""
    wide = torch.promote_types(x.dtype, torch.float32)
    pairs = torch.arange(0, width, 2, device=x.device, dtype=wide)  # [width / 2]
    frequencies = theta ** (-pairs / width)
    positions = torch.arange(length, device=x.device, dtype=wide)  # [T]
    angles = positions[:, None] * frequencies  # [T, width / 2]
    return angles.cos(), angles.sin()


def rotate(heads: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Turn `heads` [B, H, T, width]; channel i is paired with channel i + width / 2."""
    cos, sin = (table.to(heads.dtype) for table in rope)
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
