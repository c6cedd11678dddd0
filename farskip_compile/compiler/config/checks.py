# SPDX-License-Identifier: Apache-2.0
"""What values the options may have: each on its own, and together.

Contract: `check_options` refuses what is wrong with the options as they were given, by a `ConfigError` that names the
option, its value and what would do. It reads no file and looks up no group: `config.resolve` does, and refuses what it
finds there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from farskip_compile.base.choices import ConnectivityName, Inner
from farskip_compile.costs import HardwareProfile, profiles
from farskip_compile.declare import check_kinds_option
from farskip_compile.errors import ConfigError
from farskip_compile.manifest import Manifest
from farskip_compile.passes.contract import PASSES, why_indispensable
from farskip_compile.text_utils import did_you_mean

if TYPE_CHECKING:
    from farskip_compile.compiler.config import FarSkipConfig

PieceCount = Literal[1, 2, 4, "auto"]
PiecesAlong = Literal["auto", "experts", "tokens"]


def check_options(config: FarSkipConfig) -> None:
    """Refuse what is wrong.

    Raises:
        ConfigError: a value of the wrong type, or options that exclude each other.
    """
    _check_connectivity(config)
    _check_types(config)
    _check_numbers(config)
    _check_combinations(config)
    _check_disabled(config.disable_passes)
    check_kinds_option(config.kinds)


def group_name(config: FarSkipConfig) -> Any:
    """The name of the group of the all-to-alls, if one was given."""
    return getattr(config.ep_group, "group_name", config.ep_group)


def _require(config: FarSkipConfig, name: str, fulfilled: bool, otherwise: str, way_out: str) -> None:
    if not fulfilled:
        raise ConfigError(f"{name}={getattr(config, name)!r} {otherwise}", way_out=way_out)


def _check_connectivity(config: FarSkipConfig) -> None:
    given = config.connectivity
    if given is None:
        return
    if isinstance(given, str):
        names = ", ".join(get_args(ConnectivityName))
        way_out = f"one of {names}, or a table of the terms that sub-blocks leave out"
        _require(config, "connectivity", given in get_args(ConnectivityName), "is unknown", way_out)
        return
    is_table = isinstance(given, Mapping) and all(
        isinstance(row, str) and not isinstance(terms, str) and all(isinstance(term, str) for term in terms)
        for row, terms in given.items()
    )
    if not is_table:
        raise ConfigError(
            "connectivity is neither a name nor a table",
            way_out='for example connectivity={"attention.2": ["r1"], "moe.2": ["a2"]}',
        )
    if config.layers is not None:
        raise ConfigError(
            "a connectivity table already says which layers change",
            way_out="drop `layers`, or use a named connectivity",
        )


def _check_types(config: FarSkipConfig) -> None:
    layers, manifest, profile = config.layers, config.manifest, config.profile
    pair = isinstance(layers, Sequence) and len(layers) == 2 and all(map(_is_integer, layers))
    way_out = "layers=(first, last), both inclusive"
    _require(config, "layers", layers is None or pair, "is not a pair of integers", way_out)
    is_manifest = manifest is None or isinstance(manifest, Manifest | Mapping | str | os.PathLike)
    _require(config, "manifest", is_manifest, "is not a manifest", "a Manifest, its parsed JSON, or a path")
    _require(config, "inner", config.inner in get_args(Inner), "is unknown", f"one of {', '.join(get_args(Inner))}")
    for name in ("strict", "merge_reductions", "schedule", "check_order"):
        is_bool = isinstance(getattr(config, name), bool)
        _require(config, name, is_bool, "is not a bool", f"{name}=True or {name}=False")
    if not isinstance(config.inductor, Mapping) or not all(isinstance(key, str) for key in config.inductor):
        raise ConfigError("inductor= takes a dictionary of Inductor options", way_out="inductor={...}")
    known = config.pieces == "auto" or (_is_integer(config.pieces) and config.pieces in get_args(PieceCount))
    _require(config, "pieces", known, "is unknown", f"one of {', '.join(map(repr, get_args(PieceCount)))}")
    is_count = _is_integer(config.micro_batches) and config.micro_batches in (1, 2)
    _require(config, "micro_batches", is_count, "is unknown", "1 or 2")
    along = config.pieces_along in get_args(PiecesAlong)
    _require(config, "pieces_along", along, "is unknown", f"one of {', '.join(map(repr, get_args(PiecesAlong)))}")
    is_profile = profile is None or isinstance(profile, str | HardwareProfile)
    _require(config, "profile", is_profile, "is not a hardware profile", f"one of {', '.join(profiles())}, or a path")
    is_group = config.ep_group is None or isinstance(group_name(config), str)
    _require(config, "ep_group", is_group, "is not a process group", "farskip_compile.comm.expert_group(group)")
    if config.on_report is not None and not callable(config.on_report):
        raise ConfigError("on_report is not callable", way_out="pass a function of one report")


def _check_numbers(config: FarSkipConfig) -> None:
    increase, imbalance, in_flight = config.memory_increase, config.load_imbalance, config.in_flight_bytes
    is_fraction, is_ratio = _is_number(increase, least=0.0), _is_number(imbalance, least=1.0)
    is_size = _is_integer(in_flight) and in_flight >= 0
    _require(config, "memory_increase", is_fraction, "is not a fraction of the peak", "0.05 allows 5 % more")
    way_out = "1.0 for balanced experts, 2.0 if the fullest rank gets twice the mean"
    _require(config, "load_imbalance", is_ratio, "is not a ratio of the most to the mean", way_out)
    _require(config, "in_flight_bytes", is_size, "is not a number of bytes", "an int >= 0")


def _check_combinations(config: FarSkipConfig) -> None:
    if config.inductor and config.inner != "inductor":
        raise ConfigError(
            f"Inductor options are given, but inner={config.inner!r}", way_out='inner="inductor", or drop them'
        )
    for name in ("pieces", "micro_batches"):
        value = getattr(config, name)
        if value != 1 and (config.inner != "inductor" or not config.schedule):
            raise ConfigError(
                f"{name}={value!r} does nothing with inner={config.inner!r} and schedule={config.schedule!r}",
                way_out=f'inner="inductor" and schedule=True, or {name}=1',
            )
    if config.pieces != 1 and config.micro_batches != 1:
        raise ConfigError(
            f"pieces={config.pieces!r} and micro_batches={config.micro_batches} both cut exchanges",
            way_out="one of them: parts of the batch have exchanges of their own",
        )
    if config.merge_reductions and config.connectivity not in (None, "full", "mlp"):
        raise ConfigError(
            f'merge_reductions needs connectivity="full" or "mlp", not {config.connectivity!r}: otherwise something '
            "reads the stream between the two reductions",
            way_out='connectivity="full" or "mlp", or merge_reductions=False',
        )


def _check_disabled(given: Sequence[str]) -> None:
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"disable_passes={given!r} is not a list of names", way_out='disable_passes=["tags"]')
    known = [one.name for one in PASSES]
    optional = ", ".join(name for name in known if not why_indispensable(name))
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known, f"passes that can be disabled: {optional}")
            raise ConfigError(f"disable_passes names an unknown pass, {name!r}", way_out=hint)
        if reason := why_indispensable(name):
            way_out = f"passes that can be disabled: {optional}"
            if name == "rewire":
                way_out = f'connectivity="none" leaves the function as it is; {way_out}'
            raise ConfigError(f"the pass {name!r} can't be disabled: {reason}", way_out=way_out)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object, *, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < float("inf")
