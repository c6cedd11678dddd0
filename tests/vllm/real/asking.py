# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that ask for rewiring, in each way in which one can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import farskip_compile
from tests.vllm.real.checkpoints import VOCABULARY, edit, make


def asking(root: Path, family: str, by: str, *, vocabulary: int = VOCABULARY, **options: Any) -> Path:
    """Make a checkpoint with `vocabulary` tokens, once, and return its folder.

    The checkpoint asks for rewiring by `options` of vLLM (so not at all), by a `manifest`, guarded or `plain`, or by
    AMD's keys (`amd`).
    """
    name = "-".join([family, by, str(vocabulary), *map(str, options.values())])
    folder = root / name
    if folder.exists():
        return folder
    model = make(family, folder, vocab_size=vocabulary)
    if by == "amd":
        edit(folder, {"farskip": True})
    elif by in ("manifest", "plain"):
        farskip_compile.prepare(model)
        manifest = farskip_compile.describe(model, torch.tensor([[5, 6, 7, 8]]), **options)
        farskip_compile.save_manifest(manifest, folder, guard=by == "manifest")
    return folder
