# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as a causal model that can be captured, and its tokenizer.

Contract: from local folders, or a MODEL as `farskip explain` takes it; what is missing is a `ConfigError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from farskip_compile.base.extras import need
from farskip_compile.errors import ConfigError
from farskip_compile.manifest.lost import new_parameters, refuse_lost
from farskip_compile.tools.prepare import prepare
from farskip_compile.tools.zoo.model_source import load


def model_of(name: str, folder: Path, dtype: str | None = None) -> nn.Module:
    """The causal model in a folder from `save_pretrained`, or a MODEL as `farskip explain` takes it; prepared.

    Args:
        name: relative to `folder`.
        dtype: of the parameters; None: as they are.

    Raises:
        ConfigError: it can't be loaded, or is not a module.
    """
    kind = getattr(torch, dtype, None) if dtype is not None else None
    if dtype is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise ConfigError(f"dtype={dtype!r} is not a floating-point type", way_out='"float32" or "bfloat16"')
    if not (folder / name).is_dir():
        found: Any = load(name).model
    else:
        need(name, "transformers", extra="distill")
        found = whole_model(folder / name)
    if not isinstance(found, nn.Module):
        raise ConfigError(f"{name} is {type(found).__name__}, not a module", way_out="a checkpoint folder, or a MODEL")
    model = found.to(kind) if kind is not None else found
    prepare(model)
    return model


def whole_model(folder: Path) -> Any:
    """Return the causal model of transformers in a folder from `save_pretrained`, with all of its weights.

    Raises:
        ManifestError: names weights that the folder does not have, which transformers would make up.
    """
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(str(folder))
    if new := new_parameters(found):
        refuse_lost(sorted(new), f"the checkpoint {folder}")
    return found


def tokenizer_of(name: str, folder: Path) -> Any:
    """The tokenizer in a folder from `save_pretrained`, relative to `folder`.

    Raises:
        ConfigError: there is none.
    """
    need("a tokenizer", "transformers", extra="distill")
    from transformers import AutoTokenizer

    if not (folder / name).is_dir():
        raise ConfigError(f"there is no tokenizer {name}", way_out='tokenizer = "a folder from save_pretrained"')
    return AutoTokenizer.from_pretrained(str(folder / name))
