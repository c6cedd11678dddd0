# SPDX-License-Identifier: Apache-2.0
"""Tensors on disk: files of safetensors, with a seal that is kept elsewhere.

In:    tensors by name, of any device, or the local parts of DTensors; or a file and its seal.
Out:   a file that is complete or unchanged, and its `Seal`: size and hash; or the tensors, on the CPU, memory-mapped.
Never: runs code from a file, as unpickling does. Gives tensors of a file whose every byte is not what was written.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from farskip_compile.base.extras import pip_install
from farskip_compile.base.json_files import replacing
from farskip_compile.base.reading.files import open_file
from farskip_compile.errors import DistillationError, MissingPackageError

UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, NotImplementedError)
"""What torch and safetensors raise for what they can't write or read, besides an error of safetensors' own."""


@dataclass(frozen=True)
class Seal:
    """What the content of a file must be."""

    bytes: int
    sha256: str


def library() -> Any:
    """The module `safetensors.torch`.

    Raises:
        MissingPackageError: it, or what it needs, is not installed.
    """
    try:
        import numpy  # noqa: F401  (safetensors needs it to write tensors)
        import safetensors.torch
    except ImportError as error:
        raise MissingPackageError(
            f"states, caches and checkpoints are files of safetensors: {error}", way_out=pip_install("safetensors")
        ) from error
    return safetensors.torch


def local(value: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor that are on this rank, in the memory of the tensor, with real numbers for complex ones.

    safetensors does not have all complex types.
    """
    here: Any = value.detach()
    here = here.to_local() if hasattr(here, "to_local") else here
    return torch.view_as_real(here) if here.is_complex() else here


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> Seal:
    """Write `tensors` as `local` has them.

    Raises:
        DistillationError: they can't be written.
    """
    save_file, seen, kept = library().save_file, set[int](), {}
    try:
        for name, value in tensors.items():
            here = local(value).cpu().contiguous()
            where = here.untyped_storage().data_ptr()
            kept[name] = here.clone() if where in seen else here  # safetensors writes no memory twice
            seen.add(where)
        with replacing(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(kept, temporary)
            temporary.chmod(mode)  # safetensors lets only the owner read
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            seal = Seal(temporary.stat().st_size, digest)
    except UNREADABLE as error:
        raise DistillationError(
            f"can't write the tensors {path}: {error}", way_out="room on the disk; plain tensors as parameters"
        ) from error
    return seal


def read_tensors(path: Path, seal: Seal, way_out: str) -> dict[str, torch.Tensor]:
    """The tensors in a file; they are read from the disk when they are used.

    Raises:
        DistillationError: the file is not what `seal` says, to the byte.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open_file(path) as file:
            if (size := os.fstat(file.fileno()).st_size) != seal.bytes:
                raise DistillationError(f"{path} has {size} bytes; {seal.bytes} were written", way_out=way_out)
            if hashlib.file_digest(file, "sha256").hexdigest() != seal.sha256:
                raise DistillationError(f"{path} is damaged: it is not what was written", way_out=way_out)
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
    except (*UNREADABLE, SafetensorError) as error:
        raise DistillationError(f"can't read the tensors {path}: {error}", way_out=way_out) from error
