"""Kinds of layers that a family's code knows, but that the default of its configuration does not use.

Contract: come in per-layer lists of a configuration and the source of the model; out come the lists with those kinds
mixed in. A list with two kinds or more stays as it is: the default shows the structure. It is a proposal: the caller
builds the model to see whether the code really has them.

A kind is a word that `transformers` allows for layers. The code knows one if it compares something with that word; if
it only compares with the kind in use, the other words of attention that it quotes are the alternative.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

WORDS = "layer_types"
"""How the name of a field ends that gives each layer a kind, by word."""


def mixed(lists: Mapping[str, Any], source: str, layers: int) -> dict[str, list[Any]]:
    """The lists that change.

    Args:
        lists: per-layer fields by name; None where the default has none.
        source: of the model's module.
        layers: how many.
    """
    from transformers.configuration_utils import ALLOWED_LAYER_TYPES

    blocks = ("sparse", "dense")
    changed: dict[str, list[Any]] = {}
    for name, entries in lists.items():
        if "moe" in name and entries == list(range(layers)):  # numbers of the layers with experts: every second one
            changed[name] = entries[1::2]
        if not name.endswith(WORDS) or name.startswith("mtp") or len(set(entries or [])) > 1:
            continue
        used = entries[0] if entries else None
        if name.startswith("mlp"):
            others = [word for word in blocks if word != used] if used in blocks and _compared(source, blocks) else []
            if others:  # dense layers come first
                changed[name] = [others[0], *entries[1:]]
            continue
        words = [word for word in ALLOWED_LAYER_TYPES if word not in blocks and f'"{word}"' in source]
        others = [word for word in _compared(source, words) if word != used]
        if used is None or (not others and _compared(source, [used])):
            others = [word for word in words if word != used and (used is None or "attention" in word)]
        cycle = others if used is None else [used, *others]
        if others:
            changed[name] = [cycle[number % len(cycle)] for number in range(layers)]
    return changed


def _compared(source: str, words: Any) -> list[str]:
    """Those of the words that the source compares something with."""
    return [word for word in words if re.search(rf'[=!]= "{word}"', source)]
