# SPDX-License-Identifier: Apache-2.0
"""A `config.json` that no loader takes for the one of the original model.

Contract: text in, text out. `guarded` gives the model a type of its own, so that a loader which knows nothing of
FarSkip refuses it by name instead of computing fluent nonsense; `unguarded` puts every character back.
  `model_type`     `farskip_deepseek_v3`; the original one is kept under `farskip_model_type`
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
PREFIX = "farskip_"
ORIGINAL_TYPE = PREFIX + TYPE
"""Key of the type of the original model."""
CLASSES = "architectures"
CLASS_PREFIX = "FarSkip"
CODE = "auto_map"
ORIGINAL_CODE = PREFIX + CODE


def guarded(text: str) -> str:
    """The text of a `config.json` with a model type that only this package knows."""
    config = json.loads(text)
    name = config.get(TYPE)
    if not isinstance(name, str) or name.startswith(PREFIX) or has_amd_keys(config):
        return text
    text = with_key(text, TYPE, PREFIX + name)
    if isinstance(names := config.get(CLASSES), list):
        text = with_key(text, CLASSES, [CLASS_PREFIX + str(name).removeprefix(CLASS_PREFIX) for name in names])
    if code := config.get(CODE):
        text = with_key(with_key(text, CODE, {}), ORIGINAL_CODE, code)
    return with_key(text, ORIGINAL_TYPE, name)


def is_guarded(text: str) -> bool:
    """Whether loaders without this package refuse it."""
    return str(json.loads(text).get(TYPE, "")).startswith(PREFIX)


def unguarded(text: str) -> str:
    """What `guarded` was given, up to white space in the values that it changed."""
    config = json.loads(text)
    for key, value in original(config).items():
        if value != config[key]:
            text = with_key(text, key, value)
    return without_key(without_key(text, ORIGINAL_TYPE), ORIGINAL_CODE)


def original(config: dict[str, Any]) -> dict[str, Any]:
    """The same as parsed JSON."""
    if not isinstance(config.get(ORIGINAL_TYPE), str):
        return config
    found = {key: value for key, value in config.items() if key not in (ORIGINAL_TYPE, ORIGINAL_CODE)}
    found[TYPE] = config[ORIGINAL_TYPE]
    if isinstance(names := config.get(CLASSES), list):
        found[CLASSES] = [str(name).removeprefix(CLASS_PREFIX) for name in names]
    if ORIGINAL_CODE in config:
        found[CODE] = config[ORIGINAL_CODE]
    return found
