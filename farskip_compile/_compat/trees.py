# SPDX-License-Identifier: Apache-2.0
"""Trees of values: what PyTorch takes apart and puts together again; a part of `_compat`.

Checked by running on torch 2.13.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils import _pytree

Structure = _pytree.TreeSpec


def leaves_of(tree: Any) -> tuple[list[Any], Structure]:
    """What a structure of known classes holds, and the structure without it."""
    leaves, structure = _pytree.tree_flatten(tree)
    return leaves, structure


def put_together(leaves: Iterable[Any], structure: Structure) -> Any:
    """The opposite of `leaves_of`."""
    return _pytree.tree_unflatten(leaves, structure)


def register_tree(
    cls: type[Any], flatten: Callable[[Any], tuple[list[Any], Any]], unflatten: Callable[[Any, Any], Any]
) -> None:
    """Let PyTorch's walks over structures look into objects of `cls`."""
    _pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=f"{cls.__module__}.{cls.__qualname__}")


def is_alias(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both are views of the same memory."""
    alias: bool = torch._C._is_alias_of(one, other)  # type: ignore[attr-defined]
    return alias


def map_over(cls: type[Any], function: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with each object of `cls` in it replaced by what `function` makes of it."""
    return _pytree.tree_map_only(cls, function, tree, is_leaf=lambda value: type(value) is cls)


def leaves_of_type(cls: type[Any], tree: Any) -> list[Any]:
    """Return each object of `cls` in `tree`."""
    leaves = _pytree.tree_leaves(tree, is_leaf=lambda value: type(value) is cls)
    return [leaf for leaf in leaves if type(leaf) is cls]
