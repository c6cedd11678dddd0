# SPDX-License-Identifier: Apache-2.0
"""Loading and saving of guarded adapters, whose models run rewired or not at all.

Contract: `register_adapter_types` and `watch_models` are called once PEFT, and transformers' support for it, are
imported (`farskip_compile/__init__.py`).
- Reading: the types `FARSKIP_*` are known to PEFT, in its own registry. The configuration that PEFT then makes is of a
  subclass of the original one, and guards what it saves.
- Loading: `PeftModel.load_adapter`, `PeftModel.from_pretrained`, which calls it, and `load_adapter` of a model of
  transformers guard the model (`forward`) and the checkpoints that it saves, merged weights too, once they have loaded
  a guarded adapter. A weight that the adapter's file does not have is an error that names it.
- Saving: `save_pretrained` of a `PeftModel`, and of a model of transformers that holds adapters, writes manifest and
  guard with each adapter if the model has a manifest (`checkpoints.guard_saves`). Trainers, `push_to_hub` and scripts
  all save adapters by these.
`farskip_compile.unguard` is the way back.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any, cast

from farskip_compile.base.json_files import write_text
from farskip_compile.compiler.guard.checkpoints import WATCHED, guard_saves, manifest_of_saves
from farskip_compile.compiler.guard.forward import guard
from farskip_compile.errors import ManifestError
from farskip_compile.manifest.adapters import COPIES, names_without_adapters
from farskip_compile.manifest.files import ADAPTER, FILE, KEY, WRITABLE, load_manifest, read_manifest, write_manifest
from farskip_compile.manifest.guarded_adapter import ORIGINAL_TYPE, PREFIX, TYPE, guarded_adapter, is_guarded_adapter
from farskip_compile.manifest.json_text import with_key
from farskip_compile.manifest.lost import refuse_lost
from farskip_compile.manifest.record import Manifest

CLASS_PREFIX = "FarSkip"
DEFAULT = "default"
"""The name of the adapter that PEFT saves into the folder itself; other adapters get folders in it."""


def register_adapter_types() -> None:
    """Let PEFT load and save guarded adapters. A second call changes nothing."""
    from peft import PeftConfig, PeftModel
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING  # by names, of which PEFT's own are an enumeration
    adapted: Any = PeftModel

    class Configurations(PeftConfig):
        """The configuration class of every guarded type, which makes a guarded subclass of the original one."""

        def __new__(cls, **kwargs: Any) -> Any:
            manifest, name = kwargs.pop(KEY, None), kwargs.pop(ORIGINAL_TYPE, "")
            if name not in known:
                raise ManifestError(
                    f"this guarded adapter is of the type {name!r}, which PEFT does not know",
                    way_out="farskip_compile.save_manifest(manifest, folder, guard=False) puts its configuration back",
                )
            config = known[name].from_peft_type(**kwargs | {TYPE: name})
            _guard_config(config, manifest)
            return config

    for name in list(known):
        if not str.startswith(name, PREFIX):
            known.setdefault(PREFIX + str.__str__(name), Configurations)
    if not hasattr(adapted.load_adapter, WATCHED):
        adapted.load_adapter = _guarding_load(adapted.load_adapter)
        adapted.save_pretrained = _guarding_save(adapted.save_pretrained)


def watch_models() -> None:
    """Let models of transformers load and save guarded adapters. A second call changes nothing."""
    from transformers.modeling_utils import PreTrainedModel

    models: Any = PreTrainedModel
    if not hasattr(models.load_adapter, WATCHED):
        models.load_adapter = _guarding_load(models.load_adapter)
        models.save_pretrained = _guarding_save(models.save_pretrained)


def _guard_config(config: Any, manifest: Any) -> None:
    """Let a configuration of PEFT write the guard and the manifest with itself."""
    if type(config).__module__ != __name__:
        config.__class__ = _guarded_class(cast(Hashable, type(config)))
    setattr(config, KEY, manifest)


@functools.cache
def _guarded_class(config_class: Any) -> Any:
    """Return the subclass of a configuration class that guards the files that it saves."""

    def save_pretrained(self: Any, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        config_class.save_pretrained(self, save_directory, **kwargs)
        path = Path(save_directory) / ADAPTER
        text = with_key(guarded_adapter(path.read_text()), KEY, getattr(self, KEY))
        write_text(path, text, way_out=WRITABLE, error=ManifestError)

    body = {"__module__": __name__, "__doc__": config_class.__doc__, "save_pretrained": save_pretrained}
    return type(CLASS_PREFIX + config_class.__name__, (config_class,), body)


def _guarding_load(plain: Any) -> Any:
    """Return a method that loads an adapter as `plain` does, and guards the model if the adapter is guarded."""
    signature = inspect.signature(plain)

    @functools.wraps(plain)
    def load_adapter(self: Any, *args: Any, **kwargs: Any) -> Any:
        base = _base_model(self)
        result = plain(self, *args, **kwargs)
        arguments = signature.bind(self, *args, **kwargs).arguments
        place = str(arguments.get("model_id", arguments.get("peft_model_id")))
        options = {**(arguments.get("adapter_kwargs") or {}), **arguments.get("kwargs", {})}
        folder = Path(place) / (options.get("subfolder") or "")
        manifest = _manifest_of_adapter(self.peft_config[arguments.get("adapter_name") or DEFAULT], folder)
        if manifest is not None:
            names_in_base = names_without_adapters(self)
            lost = []
            for name in result.missing_keys:
                if names_in_base.get(name) is None or COPIES in name.split("."):
                    lost.append(name)
            if lost:
                refuse_lost(sorted(lost), f"the adapter {place}")
            _refuse_another_form(manifest, manifest_of_saves(base), place)
            guard_saves(base)(manifest)
            guard(base, next((str(file) for file in (folder / FILE, folder / ADAPTER) if file.exists()), None))
        return result

    setattr(load_adapter, WATCHED, True)
    return load_adapter


def _guarding_save(plain: Any) -> Any:
    """Return a method that saves adapters as `plain` does, with manifest and guard in the folder of each."""

    @functools.wraps(plain)
    def save_pretrained(self: Any, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        configs = getattr(self, "peft_config", None)
        found = manifest_of_saves(_base_model(self)) if configs else None
        if found is None or not configs:
            return plain(self, save_directory, *args, **kwargs)
        manifest, guarded = found
        for config in configs.values() if guarded else ():
            _guard_config(config, manifest.to_json())
        result = plain(self, save_directory, *args, **kwargs)
        if not guarded:
            folders = {Path(save_directory), *(Path(save_directory) / name for name in configs)}
            for folder in folders:
                if (folder / ADAPTER).exists():
                    write_manifest(manifest, folder, guard=False)
        return result

    setattr(save_pretrained, WATCHED, True)
    return save_pretrained


def _base_model(model: Any) -> Any:
    """Return the model in a `PeftModel`, or the model of transformers that holds adapters itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _manifest_of_adapter(config: Any, folder: Path) -> Manifest | None:
    """Return the manifest of an adapter whose configuration, or whose file in a local folder, is guarded."""
    if type(config).__module__ == __name__:
        return read_manifest({KEY: getattr(config, KEY)}, f"the configuration of {folder}")
    file = folder / ADAPTER
    return load_manifest(folder) if file.exists() and is_guarded_adapter(file.read_text()) else None


def _refuse_another_form(manifest: Manifest, known: tuple[Manifest, bool] | None, place: str) -> None:
    if known is not None and known[0].digest != manifest.digest:
        raise ManifestError(
            f"the adapter {place} is for {manifest.connectivity!r}, and the model that it is loaded onto is for "
            f"{known[0].connectivity!r}, or has other layers, sub-blocks or parameters",
            way_out="the base model that the adapter was trained on; its adapter_config.json names it",
        )
