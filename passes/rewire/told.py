# SPDX-License-Identifier: Apache-2.0
"""A connectivity by table, told to each layer of a model that is compiled by itself, in that layer's own numbers.

    asked of the model      attention.5 leaves out r4, moe.5 leaves out a5
    told to layer 5         attention.0 leaves out r-1, moe.0 leaves out a0; and what later layers leave out of its own
    told to layer 6         the same, if the table says so of it: both share one compiled graph

In:    the user's table, and the number of a layer, in which its one attention, or other token mixer, stands.
Out:   text, that a graph can hold; and what it says.
Never: knows which sub-blocks there are: what is named and absent is found when a layer is asked (`request`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from farskip_compile.errors import ConnectivityError

NAME = re.compile(r"([a-z]+)(\.?)(\d+)((?:\.\d+)?)")
"""Of a row, such as `moe.5`, or a term, such as `r4`; each followed by a number if there are several."""


def told(asked: Mapping[str, Sequence[str]], layer: int) -> str:
    """What the sub-blocks of this layer leave out.

    Raises:
        ConnectivityError: a name is not one of a sub-block or a term.
    """
    own = {row: terms for row, terms in asked.items() if _layer(row) == layer and terms}
    here = {_moved(row, layer): [_moved(term, layer) for term in terms] for row, terms in own.items()}
    return json.dumps(here, sort_keys=True)


def told_later(asked: Mapping[str, Sequence[str]], layer: int) -> str:
    """What later layers leave out of all that there is after this one."""
    terms = {term for row, terms in asked.items() if _layer(row) > layer for term in terms}
    return json.dumps(sorted(_moved(term, layer) for term in terms if _layer(term) <= layer))


def heard(text: str) -> dict[str, list[str]]:
    """What `told` says."""
    found: dict[str, list[str]] = json.loads(text)
    return found


def heard_later(text: str) -> frozenset[str]:
    """What `told_later` says."""
    return frozenset(json.loads(text))


def _layer(name: str) -> int:
    found = NAME.fullmatch(name)
    if found is None:
        raise ConnectivityError(
            f"the connectivity table names {name!r}, which is not a sub-block or a term of a layer",
            way_out="names such as moe.5 and r4; the embedding is left out by none",
        )
    return int(found[3])


def _moved(name: str, layer: int) -> str:
    """The name in a graph that begins with this layer."""
    number = _layer(name) - layer
    return NAME.sub(lambda found: f"{found[1]}{found[2]}{number}{found[4]}", name)
