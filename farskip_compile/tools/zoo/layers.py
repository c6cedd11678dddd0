# SPDX-License-Identifier: Apache-2.0
"""Choose a few layers that stand for all kinds of layers of a configuration, and add kinds that its default does not
use.

Contract: the default values of a configuration's fields and the number of layers wanted come in; the numbers of the
chosen layers go out, in order, and the per-layer fields cut to them. A few layers more than wanted are chosen if the
kinds need it, or if there were fewer than two with experts.

1. A per-layer field is a list as long as there are layers; another form is a rising list of layer numbers.
2. The kind of a layer is the tuple of its entries. The first layer of each kind is chosen,
3. then the earliest layers with experts, until there are enough.
4. `mixed` proposes lists with kinds that the model's code knows but that its default does not use; the caller builds
   the model to see whether the code really has them. A list with two kinds or more stays as it is: the default shows
   the structure. A kind is a word that `transformers` allows for layers. The code knows one if it compares something
   with that word; if it only compares with the kind in use, the other words of attention that it quotes are the
   alternative.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MORE = 2
"""How many more layers than wanted there may be."""
_EXPERTS = re.compile(r"sparse|moe|expert")
WORDS = "layer_types"
"""How the name of a field ends that gives each layer a kind by a word."""


@dataclass(frozen=True)
class PerLayer:
    """The per-layer fields of a configuration."""

    lists: Mapping[str, list[Any]]
    numbers: Mapping[str, list[int]]
    """Fields that list layers by number."""
    length: int

    def chosen(self, layers: int) -> list[int]:
        """Numbers of the layers that stand for all."""
        if not self.lists and not self.numbers:
            return list(range(layers))
        first: dict[Any, int] = {}
        for number in range(self.length):
            first.setdefault(self.kind(number), number)
        if len(first) > layers + MORE:  # too many combinations: each entry once
            first = {}
            for number in range(self.length):
                for place, entry in enumerate(self.kind(number)):
                    first.setdefault((place, entry), number)
        chosen = sorted(set(first.values()))[: layers + MORE]
        others = [n for n in range(self.length) if n not in chosen]
        for number in sorted(others, key=lambda n: not self.has_experts(n)):
            if len(chosen) < layers:
                chosen.append(number)
        chosen.sort()
        # a list that is itself short goes around once more
        while sum(map(self.has_experts, chosen)) < 2 and len(chosen) < layers + MORE:
            chosen.append(chosen[len(chosen) - self.length] if len(chosen) >= self.length else len(chosen))
        return chosen

    def kind(self, number: int) -> tuple[Any, ...]:
        """What this layer is."""
        return (*(str(v[number]) for v in self.lists.values()), *(number in v for v in self.numbers.values()))

    def has_experts(self, number: int) -> bool:
        """Whether this layer has routed experts, as far as the lists say."""
        for entries in self.lists.values():
            if any(isinstance(e, str) and _EXPERTS.search(e) for e in entries):
                return _EXPERTS.search(str(entries[number])) is not None
        for name, numbers in self.numbers.items():
            if re.search(r"mlp_only|dense", name):
                return number not in numbers
            if _EXPERTS.search(name):
                return number in numbers
        return True

    def cut(self, chosen: list[int]) -> dict[str, list[Any]]:
        """The fields for the chosen layers."""
        lists = {name: [entries[n] for n in chosen] for name, entries in self.lists.items()}
        numbers = {name: [i for i, n in enumerate(chosen) if n in entries] for name, entries in self.numbers.items()}
        return lists | numbers


def per_layer(fields: Mapping[str, Any], length: int) -> PerLayer:
    """The per-layer fields among `fields` of a configuration with `length` layers."""
    lists, numbers = {}, {}
    for name, value in fields.items():
        if not isinstance(value, (list, tuple)) or not value:
            continue
        rising = all(type(v) is int for v in value) and list(value) == sorted(set(value))
        if rising and re.search(r"layers|ids", name):
            numbers[name] = list(value)
        elif len(value) == length > 2:
            lists[name] = list(value)
    return PerLayer(lists, numbers, length)


def mixed(lists: Mapping[str, Any], source: str, layers: int) -> dict[str, list[Any]]:
    """Those of the per-layer fields (None where the default has none) that change; `source` is the model's module."""
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
