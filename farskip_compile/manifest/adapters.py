# SPDX-License-Identifier: Apache-2.0
"""Parameters of a model that adapters (LoRA) were put around, by the names that they had without.

In:    names of parameters of a graph, and those of a manifest.
Out:   for each name that the manifest does not have, the one that it stands for; None: it is the adapter's own.
Never: knows what an adapter's own parts are called.

An adapter takes the place of a module and holds it: `q_proj.weight` becomes `q_proj.base_layer.weight`, one component
more, or the same one several times. Everything else in its place is its own: `q_proj.lora_A.default.weight`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable


def without_adapters(names: Iterable[str], known: Collection[str]) -> dict[str, str | None]:
    """See the module's contract; a name that is neither is left out."""
    strange = [name for name in names if name not in known]
    found: dict[str, str | None] = {}
    places: set[str] = set()
    for name in strange:
        for place, inner in _shorter(name.split(".")):
            if inner in known:
                found[name] = inner
                places.add(place)
                break
    for name in strange:
        parts = name.split(".")
        if name not in found and any(".".join(parts[:count]) in places for count in range(1, len(parts))):
            found[name] = None
    return found


def _shorter(parts: list[str]) -> Iterable[tuple[str, str]]:
    """Each prefix of a name, and the name without the component (or run of equal ones) that follows the prefix."""
    for start in range(1, len(parts) - 1):
        end = start + 1
        while end < len(parts) - 1 and parts[end] == parts[start]:
            end += 1
        yield ".".join(parts[:start]), ".".join([*parts[:start], *parts[end:]])
