"""The tensors and other values in what a model takes or returns, each with a name that says where it is.

Contract: looks into tuples, lists, mappings (also the outputs of transformers), data classes and other objects with
attributes, such as caches. Never copies or changes anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Name and value of every leaf of `value`: tensors, plain values, and objects that can't be looked into."""
    yield from _leaves(value, name, set())


def tensors(value: Any, name: str) -> dict[str, torch.Tensor]:
    """The tensors of `value` by name."""
    return {path: leaf for path, leaf in leaves(value, name) if isinstance(leaf, torch.Tensor)}


def _leaves(value: Any, name: str, above: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (torch.Tensor, *PLAIN)) or id(value) in above:
        yield name, value
        return
    parts = _parts(value)
    if parts is None:
        yield name, value
        return
    for key, part in parts:
        yield from _leaves(part, f"{name}{key}", above | {id(value)})


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """What `value` is made of, with the way from it to its part; None if that is not known."""
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{key}", getattr(value, key)) for key in value._fields]
    if isinstance(value, list | tuple):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if isinstance(value, type | nn.Module) or callable(value):
        return None
    if dataclasses.is_dataclass(value):
        return [(f".{entry.name}", getattr(value, entry.name)) for entry in dataclasses.fields(value)]
    return [(f".{key}", part) for key, part in vars(value).items()] if hasattr(value, "__dict__") else None
