# SPDX-License-Identifier: Apache-2.0
"""Weights that a checkpoint did not have, in a model that is to run as its manifest says.

transformers initialises them at random, logs a table, and goes on: with all other weights loaded the output is as
fluent, and wrong.

Contract: `refuse_lost` raises, and names them. `of_model` keeps the names that belong to the model of a manifest; a
head that is new on purpose does not. `newly_initialised` finds names by the mark that transformers (5.20 to 5.24) puts
on each parameter that it loads; parameters of a model that was built and not loaded have none, and are left alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import NoReturn

import torch
from torch import nn

from farskip_compile._compat.modules import plain_name, unwrapped
from farskip_compile.errors import ManifestError
from farskip_compile.manifest.adapters import COPIES, names_without_adapters
from farskip_compile.manifest.fingerprint import align
from farskip_compile.manifest.record import Manifest

LOADED = "_is_hf_initialized"
"""Attribute of a parameter that transformers has loaded."""
SHOWN = 3
"""Names in the error."""


def refuse_lost(names: Collection[str], place: str) -> NoReturn:
    """Raise, since `place` has no weights for the parameters or buffers `names`.

    Raises:
        ManifestError: always.
    """
    more = f" and {len(names) - SHOWN} others" if len(names) > SHOWN else ""
    raise ManifestError(
        f"{place} has no weights of the right shape for {', '.join(map(repr, islice(names, SHOWN)))}{more}, and they "
        "are random numbers",
        way_out="restore the files of the checkpoint; or load it with the version of transformers that its config.json "
        "names, and with AutoModelForCausalLM.from_pretrained",
    )


def of_model(manifest: Manifest | None, names: Iterable[str]) -> list[str]:
    """Return those of `names`, of parameters or buffers, that are in a module which the manifest lists, sorted.

    Without a manifest, or a list of parameters in it, all of them.
    """
    found = sorted(names)
    if manifest is None or manifest.fingerprint is None or not found:
        return found
    modules = {_module(name) for name in manifest.fingerprint.shapes}
    aligned = align([_module(name) for name in found], modules)
    return [name for name in found if aligned(_module(name)) in modules]


def newly_initialised(parameters: Mapping[str, object]) -> list[str]:
    """Return the names of parameters and buffers that transformers did not load, although it loaded others of them.

    Args:
        parameters: by name. Those of a class of their own (quantized, distributed) are left alone.
    """
    if not any(hasattr(one, LOADED) for one in parameters.values()):
        return []
    kinds = (nn.Parameter, torch.Tensor)
    return [name for name, one in parameters.items() if type(one) in kinds and not hasattr(one, LOADED)]


def new_parameters(model: nn.Module) -> frozenset[str]:
    """Return `newly_initialised` of all parameters of `model`, by their names without adapters."""
    whole = unwrapped(model)
    outside = names_without_adapters(whole)
    new = newly_initialised(dict(whole.named_parameters(remove_duplicate=False)))
    names = (outside[name] for name in new if COPIES not in name.split("."))  # copies are trained, not loaded
    return frozenset(plain_name(name) for name in names if name is not None)


def _module(name: str) -> str:
    return name.rpartition(".")[0]
