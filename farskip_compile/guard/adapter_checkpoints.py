# SPDX-License-Identifier: Apache-2.0
"""PEFT loads guarded adapters, onto models that then run rewired or not at all.

Contract: `register_adapter_types` makes the types `FARSKIP_*` known to PEFT, in its own registry, and is called when
both packages are imported (`farskip_compile/__init__.py`). The configuration that PEFT then makes is of a subclass of
the original one, and guards what it saves. `PeftModel.load_adapter`, and `from_pretrained`, which calls it, guard the
model inside (`forward`) after they have loaded a guarded adapter. `farskip_compile.unguard` is the way back.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any, cast

from farskip_compile.errors import ManifestError
from farskip_compile.guard.forward import guard
from farskip_compile.json_files import write_text
from farskip_compile.manifest.files import ADAPTER, FILE, KEY, WRITABLE
from farskip_compile.manifest.guarded_adapter import ORIGINAL_TYPE, PREFIX, TYPE, guarded_adapter, is_guarded_adapter
from farskip_compile.manifest.json_text import with_key

CLASS_PREFIX = "FarSkip"
CHECKED = "farskip_checked"


def register_adapter_types() -> None:
    """Let PEFT load guarded adapters; a second call changes nothing."""
    from peft import PeftConfig, PeftModel
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING  # by names, of which PEFT's own are an enumeration
    adapted: Any = PeftModel

    class Configurations(PeftConfig):
        """Stands for the configuration class of every guarded type."""

        def __new__(cls, **kwargs: Any) -> Any:
            manifest, name = kwargs.pop(KEY, None), kwargs.pop(ORIGINAL_TYPE, "")
            if name not in known:
                raise ManifestError(
                    f"this guarded adapter is of the type {name!r}, which PEFT does not know",
                    way_out="farskip_compile.save_manifest(manifest, folder, guard=False) puts its configuration back",
                )
            config = known[name].from_peft_type(**kwargs | {TYPE: name})
            config.__class__ = _guarded_class(cast(Hashable, type(config)))
            setattr(config, KEY, manifest)
            return config

    for name in list(known):
        if not str.startswith(name, PREFIX):
            known.setdefault(PREFIX + str.__str__(name), Configurations)
    if not hasattr(adapted.load_adapter, CHECKED):
        adapted.load_adapter = _guarding(adapted.load_adapter)


@functools.cache
def _guarded_class(config_class: Any) -> Any:
    """The subclass of a configuration class that guards what it saves."""

    def save_pretrained(self: Any, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        config_class.save_pretrained(self, save_directory, **kwargs)
        path = Path(save_directory) / ADAPTER
        text = with_key(guarded_adapter(path.read_text()), KEY, getattr(self, KEY))
        write_text(path, text, way_out=WRITABLE, error=ManifestError)

    body = {"__module__": __name__, "__doc__": config_class.__doc__, "save_pretrained": save_pretrained}
    return type(CLASS_PREFIX + config_class.__name__, (config_class,), body)


def _guarding(plain: Any) -> Any:
    @functools.wraps(plain)
    def load_adapter(self: Any, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        result = plain(self, model_id, adapter_name, *args, **kwargs)
        folder = Path(str(model_id)) / (kwargs.get("subfolder") or "")
        config = folder / ADAPTER
        known = type(self.peft_config[adapter_name]).__module__ == __name__
        if known or (config.exists() and is_guarded_adapter(config.read_text())):
            manifest = next((file for file in (folder / FILE, config) if file.exists()), None)
            guard(self.get_base_model(), str(manifest) if manifest is not None else None)
        return result

    setattr(load_adapter, CHECKED, True)
    return load_adapter
