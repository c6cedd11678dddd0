# SPDX-License-Identifier: Apache-2.0
"""An `adapter_config.json` that PEFT, and no other loader, takes for the one of an adapter of the original model.

Contract: text in, text out, as in `guarded`. An adapter that was trained on a rewired model is for the rewired model
only, and `PeftModel.from_pretrained` would put it around the model as it is written.
  `peft_type`   `FARSKIP_LORA`; the original one is kept under `farskip_peft_type`. PEFT knows such types where this
                package is imported (`guard/adapter_checkpoints.py`), and elsewhere raises a `KeyError` that names it
A loader that does not read the type, and takes the adapter for one of LoRA, does not see the guard.
"""

from __future__ import annotations

import json

from farskip_compile.manifest.json_text import with_key, without_key

TYPE = "peft_type"
PREFIX = "FARSKIP_"
ORIGINAL_TYPE = "farskip_peft_type"
"""Key of the original type."""


def guarded_adapter(text: str) -> str:
    """Return the text of an `adapter_config.json` with a type that only this package knows."""
    name = json.loads(text).get(TYPE)
    if not isinstance(name, str) or name.startswith(PREFIX):
        return text
    return with_key(with_key(text, TYPE, PREFIX + name), ORIGINAL_TYPE, name)


def is_guarded_adapter(text: str) -> bool:
    """Return whether PEFT without this package refuses the adapter."""
    return str(json.loads(text).get(TYPE, "")).startswith(PREFIX)


def unguarded_adapter(text: str) -> str:
    """Return the text that `guarded_adapter` was given, up to white space in the value that it changed."""
    name = json.loads(text).get(ORIGINAL_TYPE)
    if not isinstance(name, str):
        return text
    return without_key(with_key(text, TYPE, name), ORIGINAL_TYPE)
