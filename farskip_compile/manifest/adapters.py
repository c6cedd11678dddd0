# SPDX-License-Identifier: Apache-2.0
"""Parameters of a model that adapters (LoRA) were put around, by the names that they had without.

In:    a model (`names_without_adapters`); or names of parameters of a graph, and those of a manifest
       (`without_adapters`), where the model is not at hand.
Out:   for each name, the one that it stands for; None: it is the adapter's own. So a manifest has the names of the
       base model, and holds for it, for the model with any adapters, and for the one that these were merged into.
Never: changes anything; imports PEFT, unless somebody has. Of a graph, knows what an adapter's own parts are called.

An adapter takes the place of a module and holds it: `q_proj.weight` becomes `q_proj.base_layer.weight`, one component
more, or the same one several times. Everything else in its place is its own: `q_proj.lora_A.default.weight`. A module
that is trained as a whole (`modules_to_save`) is copied: `gate.weight` becomes `gate.modules_to_save.default.weight`,
two components more, and nothing in the graph stands for it besides.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable

from torch import nn

ORIGINAL, COPIES = "original_module", "modules_to_save"
"""Where PEFT keeps a module that is trained as a whole, and its copies by the names of adapters."""


def names_without_adapters(model: nn.Module) -> dict[str, str | None]:
    """Map each name of a parameter of `model` to its name in the model without adapters.

    None stands for a parameter of an adapter. A copy that is trained in the place of a module has the name of its
    original.
    """
    places = {name: inner for name, module in model.named_modules(remove_duplicate=False) if (inner := _inner(module))}
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return {name: _outside(name, places) if places else name for name in names}


def without_adapters(names: Iterable[str], known: Collection[str]) -> dict[str, str | None]:
    """Map names of a graph that are not `known` to the known names they stand for.

    None stands for a parameter of an adapter; a name that is neither is left out.
    """
    names = list(names)
    strange = [name for name in names if name not in known]
    found: dict[str, str | None] = {}
    taken = set(names) - set(strange)
    places: set[str] = set()
    for more in (1, 2):
        for name in strange:
            for place, inner in _shorter(name.split("."), more) if name not in found else ():
                if inner in known and (more == 1 or inner not in taken):
                    found[name] = inner
                    places.add(place)
                    break
        taken |= {inner for inner in found.values() if inner is not None}
    for name in strange:
        parts = name.split(".")
        if name not in found and any(".".join(parts[:count]) in places for count in range(1, len(parts))):
            found[name] = None
    return found


def _shorter(parts: list[str], more: int) -> Iterable[tuple[str, str]]:
    """Yield each prefix of a name, and the name without `more` components behind that prefix.

    Of one component, its repetitions are left out as well.
    """
    for start in range(1, len(parts) - more):
        end = start + more
        while more == 1 and end < len(parts) - 1 and parts[end] == parts[start]:
            end += 1
        yield ".".join(parts[:start]), ".".join([*parts[:start], *parts[end:]])


def _inner(module: nn.Module) -> str:
    """Return the attribute in which a module of PEFT keeps the module that it replaces; empty for other modules."""
    if "peft" not in sys.modules:
        return ""
    from peft import PeftMixedModel, PeftModel
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    inner = {
        PeftModel: "base_model",
        PeftMixedModel: "base_model",
        BaseTuner: "model",
        BaseTunerLayer: "base_layer",
        ModulesToSaveWrapper: ORIGINAL,
        TrainableTokensWrapper: "token_adapter",
    }
    return next((name for kind, name in inner.items() if isinstance(module, kind)), "")


def _outside(name: str, places: dict[str, str]) -> str | None:
    """Return the name without the components that adapters in `places` added; None: a parameter of an adapter."""
    parts = name.split(".")
    kept: list[str] = []
    at = 0
    while at < len(parts):
        inner = places.get(".".join(parts[:at]))
        if inner is None:
            kept.append(parts[at])
        elif inner == ORIGINAL and parts[at] == COPIES:
            at += 1  # the adapter's name
        elif parts[at] != inner:
            return None
        at += 1
    return ".".join(kept)
