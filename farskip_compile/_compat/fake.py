# SPDX-License-Identifier: Apache-2.0
"""Fake tensors: the mode that they belong to, and sizes that data decides which a call has made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import compute_unbacked_bindings, free_unbacked_symbols


def fake_mode_of(values: Iterable[torch.Tensor]) -> Any | None:
    """The mode of the first fake tensor among `values`; a context manager, in which operators compute shapes alone."""
    return next((mode for value in values if (mode := getattr(value, "fake_mode", None)) is not None), None)


def bindings_of(mode: Any, value: object) -> Any | None:
    """Where in `value` are the symbols that the call which gave it has made, for the key `unbacked_bindings` of a node.

    To be asked after each call: what is not asked for is taken for lost, and an error later.
    """
    return compute_unbacked_bindings(mode.shape_env, value) if mode.shape_env is not None else None


def size_with(size: torch.SymInt, known: dict[str, int]) -> int | None:
    """A symbolic size, the symbols put in; None if one of them is not known."""
    expr = size.node.expr
    if any(str(symbol) not in known for symbol in expr.free_symbols):
        return None
    return int(expr.xreplace({symbol: known[str(symbol)] for symbol in expr.free_symbols}))


def open_sizes(value: object) -> tuple[int, ...]:
    """The dimensions of a fake tensor whose sizes data decides."""
    sizes = value.shape if isinstance(value, torch.Tensor) else ()
    return tuple(at for at, size in enumerate(sizes) if free_unbacked_symbols(size))
