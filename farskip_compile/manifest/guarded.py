# SPDX-License-Identifier: Apache-2.0
"""A `config.json` that no loader takes for the one of the original model.

Contract: text in, text out. `guarded` edits four keys, so that a loader which knows nothing of FarSkip refuses the
checkpoint instead of computing fluent nonsense; `unguarded` puts every character back.
  `model_type`     `farskip_deepseek_v3`; the original one is kept under `farskip_model_type`. Auto classes refuse it
  `dtype`          `REFUSAL`, here and in the configuration of each part (`text_config`); the original one is kept under
                   `farskip_dtype`. A class that is called by its own name warns of another `model_type`, no more, and
                   finds no conversion of expert weights for it, so that experts would be random. torch has no dtype of
                   this name, and the error prints the name
  `architectures`  each with the prefix `FarSkip`: some converters read nothing else
  `auto_map`       empty, kept under `farskip_auto_map`: code in the repository would be run whatever the type says
A file that is not a configuration of transformers (no `model_type`), or that has AMD's keys (whose own code rewires
the model), stays as it is.
"""

from __future__ import annotations

import json
from typing import Any

from farskip_compile.manifest.amd_keys import has_amd_keys
from farskip_compile.manifest.json_text import with_key, without_key

TYPE = "model_type"
OURS = "farskip"
"""The beginning of keys and values of this package."""
PREFIX = OURS + "_"
ORIGINAL_TYPE = PREFIX + TYPE
"""Key of the type of the original model."""
CLASSES = "architectures"
CLASS_PREFIX = "FarSkip"
CODE = "auto_map"
ORIGINAL_CODE = PREFIX + CODE
DTYPE = "dtype"
ORIGINAL_DTYPE = PREFIX + DTYPE
PART = "_config"
"""The end of the keys of the configurations of parts; not all of them have a type."""
REFUSAL = "farskip: these weights are for a FarSkip form of the model, so import farskip_compile before they are loaded"
"""The `dtype` of a guarded configuration: the words of the error that constructing the configuration raises."""


def guarded(text: str) -> str:
    """Return the text of a `config.json` that only this package loads; a guard of an earlier version is renewed."""
    config = json.loads(text)
    if is_guarded(text) and config.get(DTYPE) == REFUSAL:
        return text
    text = unguarded(text)
    config = json.loads(text)
    name = config.get(TYPE)
    if not isinstance(name, str) or name.startswith(PREFIX) or has_amd_keys(config):
        return text
    for key, part in _parts(config).items():
        own = {name: value for name, value in part.items() if not name.startswith(OURS)}
        text = with_key(text, key, _with_refusal(own))
    text = with_key(text, TYPE, PREFIX + name)
    if isinstance(names := config.get(CLASSES), list):
        text = with_key(text, CLASSES, [CLASS_PREFIX + str(name).removeprefix(CLASS_PREFIX) for name in names])
    if code := config.get(CODE):
        text = with_key(with_key(text, CODE, {}), ORIGINAL_CODE, code)
    if DTYPE in config:
        text = with_key(text, ORIGINAL_DTYPE, config[DTYPE])
    return with_key(with_key(text, DTYPE, REFUSAL), ORIGINAL_TYPE, name)


def is_guarded(text: str) -> bool:
    """Return whether loaders without this package refuse the configuration."""
    return str(json.loads(text).get(TYPE, "")).startswith(PREFIX)


def unguarded(text: str) -> str:
    """Return what `guarded` was given, up to white space in the values that it changed."""
    config = json.loads(text)
    plain = original(config)
    for key, value in config.items():
        if key not in plain:
            text = without_key(text, key)
        elif plain[key] != value:
            text = with_key(text, key, plain[key])
    return text


def original(config: dict[str, Any]) -> dict[str, Any]:
    """Return a parsed `config.json` as it was before it was guarded."""
    if not isinstance(config.get(ORIGINAL_TYPE), str):
        return config
    ours = (ORIGINAL_TYPE, ORIGINAL_CODE)
    found = _without_refusal({key: value for key, value in config.items() if key not in ours})
    found |= {key: _without_refusal(part) for key, part in _parts(found).items()}
    found[TYPE] = config[ORIGINAL_TYPE]
    if isinstance(names := config.get(CLASSES), list):
        found[CLASSES] = [str(name).removeprefix(CLASS_PREFIX) for name in names]
    if ORIGINAL_CODE in config:
        found[CODE] = config[ORIGINAL_CODE]
    return found


def _parts(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the configurations of parts, which transformers lets a part's own class take out of that of the whole."""
    dicts = {key: value for key, value in config.items() if isinstance(value, dict)}
    return {key: value for key, value in dicts.items() if TYPE in value or key.endswith(PART)}


def _with_refusal(part: dict[str, Any]) -> dict[str, Any]:
    kept = {ORIGINAL_DTYPE: part[DTYPE]} if DTYPE in part else {}
    return part | {DTYPE: REFUSAL} | kept


def _without_refusal(part: dict[str, Any]) -> dict[str, Any]:
    if not str(part.get(DTYPE, "")).startswith(OURS):
        return part
    kept = {DTYPE: part[ORIGINAL_DTYPE]} if ORIGINAL_DTYPE in part else {}
    found = {key: value for key, value in part.items() if key != ORIGINAL_DTYPE and (key != DTYPE or kept)}
    return found | kept
