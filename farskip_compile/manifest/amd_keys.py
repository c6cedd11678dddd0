# SPDX-License-Identifier: Apache-2.0
"""AMD's FarSkip keys in a Hugging Face configuration, as Instella-MoE has them, read as a manifest.

Contract: `from_amd_keys` takes a configuration and gives a manifest that says connectivity and layers, for there is no
more in the keys. Values that contradict each other, or that AMD's code would take in silence for "no FarSkip at all",
are refused. Never: writes these keys.

What they mean there (layers are counted from 0; L of them are `num_hidden_layers`):
  farskip                                a boolean; false is the standard wiring, whatever else is set
  farskip_start_idx, farskip_end_idx     layer k is rewired if start <= k <= min(end, L - 1), both inclusive; defaults
                                         0 and 10000, so all layers. The first layer in the range does read the stream
                                         without the routed experts of the layer before it, as it does here
  attn_only_farskip, mlp_only_farskip    `attention`, `mlp`; neither is `full`. Both cancel each other out: refused
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from farskip_compile.base.choices import ConnectivityName
from farskip_compile.base.json_files import shown
from farskip_compile.errors import ManifestError
from farskip_compile.manifest.record import Manifest
from farskip_compile.passes.rewire.request import LayerRange

SWITCH = "farskip"
START, END = "farskip_start_idx", "farskip_end_idx"
ATTENTION_ONLY, MLP_ONLY = "attn_only_farskip", "mlp_only_farskip"
AMD_KEYS = (SWITCH, START, END, ATTENTION_ONLY, MLP_ONLY)

FIRST, LAST = 0, 10_000
"""AMD's defaults for the range."""
MOST = 10**9
"""What stands for "the last one" in configurations is not above it."""


def has_amd_keys(config: Mapping[str, Any]) -> bool:
    """Return whether AMD's keys are in a configuration; an object under `farskip` is a manifest of ours."""
    return any(key in config for key in AMD_KEYS) and not isinstance(config.get(SWITCH), Mapping)


def from_amd_keys(config: Mapping[str, Any], origin: str = "the configuration") -> Manifest:
    """Return the manifest with the connectivity and the layers that AMD's keys in a `config.json` ask for.

    Args:
        config: the parsed file; its number of layers decides what a range comes to.
        origin: where it is from, for messages.

    Raises:
        ManifestError: a value of the wrong type, or values that contradict each other; names the key.
    """
    if SWITCH not in config:
        there = ", ".join(key for key in AMD_KEYS if key in config)
        raise ManifestError(
            f"{origin}: the key {SWITCH!r} is missing" + (f" beside {there}" if there else ""),
            way_out=f'"{SWITCH}": true, or false for the standard wiring',
        )
    switch = _boolean(config, SWITCH, origin)
    attention_only, mlp_only = (_boolean(config, key, origin) for key in (ATTENTION_ONLY, MLP_ONLY))
    first, last = _layer(config, START, FIRST, origin), _layer(config, END, LAST, origin)
    if not switch:
        return Manifest("none", origin=origin)
    if attention_only and mlp_only:
        raise ManifestError(
            f"{origin}: {ATTENTION_ONLY!r} and {MLP_ONLY!r} are both true, and would leave nothing to rewire",
            way_out="keep one of them; neither is the full FarSkip form",
        )
    connectivity: ConnectivityName = "attention" if attention_only else "mlp" if mlp_only else "full"
    return Manifest(connectivity, _range(first, last, config, origin), origin=origin)


def _range(first: int, last: int, config: Mapping[str, Any], origin: str) -> LayerRange:
    """Return the range as `FarSkipConfig` takes it: None for all layers."""
    count = _number_of_layers(config)
    if count is not None:
        last = min(last, count - 1)
    if first > last:
        layers = f" of {count} layers" if count is not None else ""
        raise ManifestError(
            f"{origin}: {START!r} is {first} and {END!r} is {config.get(END, LAST)}: no layer{layers} is in that range",
            way_out=f'give a range that holds a layer, or "{SWITCH}": false for the standard wiring',
        )
    if first == 0 and (last >= LAST if count is None else last == count - 1):
        return None
    if count is None and last >= LAST:
        raise ManifestError(
            f"{origin}: {START!r} is {first} and no {END!r} is given, nor 'num_hidden_layers' that it could be made of",
            way_out=f"give {END!r}, or all of the model's config.json",
        )
    return first, last


def _number_of_layers(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config")
    for place in (config, text if isinstance(text, Mapping) else {}):
        count = place.get("num_hidden_layers")
        if isinstance(count, int) and not isinstance(count, bool) and 0 < count <= MOST:
            return count
    return None


def _boolean(config: Mapping[str, Any], key: str, origin: str) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise ManifestError(
            f"{origin}: {key!r} should be true or false, and is {shown(value)}", way_out=f'"{key}": true'
        )
    return value


def _layer(config: Mapping[str, Any], key: str, default: int, origin: str) -> int:
    """Return the index of a layer; AMD's own default for the last one is written 1e4, so whole floats are taken."""
    value = config.get(key, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= MOST or value != int(value):
        raise ManifestError(
            f"{origin}: {key!r} should be the index of a layer, and is {shown(value)}", way_out=f'"{key}": {default}'
        )
    return int(value)
