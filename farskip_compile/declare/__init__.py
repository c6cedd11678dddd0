# SPDX-License-Identifier: Apache-2.0
"""What a user knows of an operator or a module and no graph shows: that it is an attention, a mixer, routed experts.

Contract: `declare_op` notes a fact about an operator of this process, before anything is compiled; `all_declared` gives
every fact that holds for one compile, those of its option `kinds` included. A fact decides what is rewired: it is a
part of cache keys, of what ranks compare, and of manifests. Nothing here looks at a graph; `passes.graph.declared`
does.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from farskip_compile.errors import ConfigError
from farskip_compile.passes.graph.declared import ENDS, OPERATOR, Declared, DeclaredKind

NOTHING: Mapping[str, str] = MappingProxyType({})
"""Of the option `kinds`."""

_declared: dict[str, Declared] = {}
_lock = threading.Lock()


def declare_op(
    name: str,
    kind: DeclaredKind | None = None,
    *,
    outputs: Sequence[DeclaredKind] = (),
    wait: str = "",
    group: str = "",
) -> None:
    """Say what a custom operator does, for all compiles of this process from now on.

    Args:
        name: `namespace::operator`, as it is registered with `torch.library`.
        kind: `attention`, `mixer` (mixes tokens in another way), `routed` (experts that a router inside chooses),
            `dense` (each token by itself), `reduction` (a collective C with C(a + b) = C(a) + C(b), which gets its
            data as the first argument and returns the result), or `exchange` (a collective that sends rows to other
            ranks: the dispatch or the combine of experts).
        outputs: instead of `kind`, that of each tensor that it returns: `("dense", "routed")` for an operator that
            returns shared and routed experts apart.
        wait: of a `reduction` or an `exchange` that returns before it is done, the operator that waits for it: it takes
            a tensor that the launch has returned, as its first argument, and returns a new one with the result. Then
            compute can be put between the two. The launch may read its inputs, and write its results, until then;
            this package keeps both alive and unwritten. Without it, the operator blocks and can't be moved: the
            report of the compile names it.
        group: of a `reduction` or an `exchange`, its parameter that is the name of the process group, if that is not
            `group_name`. All ranks of a group must launch in the same order, which is compared at the first run.

    Raises:
        ConfigError: not an operator's name, an unknown kind, or another kind than it was declared with.
    """
    if not isinstance(name, str) or not OPERATOR.fullmatch(name):
        raise ConfigError(f"{name!r} is not the name of an operator", way_out='"mylib::attention", as registered')
    fact = _fact(name, kind, tuple(outputs), wait, group, way_out='declare_op("mylib::wkv", "mixer")')
    with _lock:
        if _declared.setdefault(name, fact) != fact:
            raise ConfigError(
                f"{name} was declared before as {_declared[name]}, and is now declared as {fact}",
                way_out="declare an operator once, in the module that registers it",
            )


def all_declared(kinds: Mapping[str, Any], known: Sequence[Declared] = ()) -> tuple[Declared, ...]:
    """What `declare_op` was told, the option `kinds` on top, and what is `known` of a manifest; in an order that is the
    same on every rank.

    Raises:
        ConfigError: a manifest says something else.
    """
    with _lock:
        found = dict(_declared)
    found.update({key: Declared.from_json(key, kind) for key, kind in kinds.items()})
    for fact in known:
        if found.setdefault(fact.name, fact) != fact:
            raise ConfigError(
                f"{fact.name} is declared as {found[fact.name]}, and the manifest was made where it is {fact}",
                way_out="declare what the manifest says, or make a manifest of this model: farskip_compile.describe",
            )
    return tuple(found[key] for key in sorted(found))


def check_kinds_option(kinds: object) -> None:
    """Refuse what `kinds` can't be.

    Raises:
        ConfigError: not a mapping, a key that names nothing, or an unknown kind.
    """
    if not isinstance(kinds, Mapping):
        raise ConfigError(f"kinds={kinds!r} is not a mapping", way_out='kinds={"mylib::wkv": "mixer"}')
    for key, kind in kinds.items():
        _fact(
            key,
            kind,
            way_out='"mylib::wkv", an operator of torch ("fft_fft"), or a module ("layers.*.mixer"); '
            '{"inputs_embeds": "embedding"} for an input of the call, and {"return": "final"}',
        )


def check_kinds_used(kinds: Mapping[str, Any], used: Sequence[Declared]) -> None:
    """Refuse what `kinds` says of something that the graph of a model does not hold: most often a misspelt name.

    An end of the model may be missing, because a model is called in several ways: `generate(inputs_embeds=...)` goes on
    with token ids. A misspelt one is noticed by the end itself, which is then open.

    Raises:
        ConfigError: it does.
    """
    asked = {name for name, kind in kinds.items() if kind not in ENDS}
    for name in sorted(asked - {fact.name for fact in used}):
        raise ConfigError(
            f"kinds names {name!r}, and the model has no such operator or module",
            way_out="an operator as an error names it, or the path of a module as in named_modules(), * for any part",
        )


def _fact(
    name: Any, kind: Any, outputs: tuple[Any, ...] = (), wait: Any = "", group: Any = "", *, way_out: str
) -> Declared:
    try:
        return Declared(name, kind, outputs, wait, group)
    except ValueError as error:
        raise ConfigError(str(error), way_out=way_out) from error
