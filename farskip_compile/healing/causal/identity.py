# SPDX-License-Identifier: Apache-2.0
"""Which model it is: a hash of all that decides its logits.

In:    a module, before its first training step.
Out:   `checksum`: of the bytes of its parameters and buffers, and of what the modules say of themselves: their class,
       and all public attributes, configurations included (top-k, scores, groups of experts). `bytes_of`: for hashes.
Never: an address or another number that the next process would not have. Private attributes (`_...`): they say where a
       model is from, or which kernels it uses.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import numbers
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import nn

DEEPEST = 6
"""Levels of objects within objects that are looked into."""


def checksum(model: nn.Module) -> str:
    """Differs for models with other logits; the same for a model that was made again, in another process too."""
    digest = hashlib.sha256()
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, value in named:
            digest.update(f"{kind} {name} {_of_tensor(value)}\n".encode())
    settings = {name: [_name(type(module)), _public(module, 0)] for name, module in model.named_modules()}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def bytes_of(value: torch.Tensor) -> Any:
    """The numbers of a tensor that are on this rank, as a buffer."""
    here: Any = value.detach()
    here = here.to_local() if hasattr(here, "to_local") else here
    return here.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _of_tensor(value: torch.Tensor) -> str:
    held = hashlib.sha256(bytes_of(value)).hexdigest() if value.device.type != "meta" else ""
    return f"{value.dtype} {list(value.shape)} {held}"


def _public(found: Any, depth: int) -> dict[str, Any]:
    return {
        name: _plain(value, depth + 1)
        for name, value in vars(found).items()
        if not name.startswith("_") and name != "training"
    }


def _plain(value: Any, depth: int) -> Any:
    """`value` as JSON, the same in every process."""
    found: Any = value
    if isinstance(value, torch.dtype | torch.device | Path | enum.Enum):
        found = str(value)
    elif isinstance(value, torch.Tensor):
        found = _of_tensor(value)
    elif isinstance(value, type) or callable(value):  # modules too: they have an entry of their own
        found = _name(value if hasattr(value, "__qualname__") else type(value))
    elif value is not None and not isinstance(value, bool | int | float | str):
        found = _name(type(value)) if depth > DEEPEST else _parts(value, depth)
    return found


def _parts(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, depth + 1) for key, inner in value.items() if not str(key).startswith("_")}
    if isinstance(value, list | tuple):
        return [_plain(inner, depth + 1) for inner in value]
    if isinstance(value, Set):
        return sorted(json.dumps(_plain(inner, depth + 1), sort_keys=True) for inner in value)
    if dataclasses.is_dataclass(value):
        held = [one.name for one in dataclasses.fields(value)]  # as stored: a configuration may refuse to say it aloud
        return {name: _plain(object.__getattribute__(value, name), depth + 1) for name in held}
    if isinstance(value, numbers.Number):
        return str(value)
    return [_name(type(value)), _public(value, depth) if hasattr(value, "__dict__") else {}]


def _name(found: Any) -> str:
    return str(found.__qualname__)  # without its module, which is `__main__` in some processes
