# SPDX-License-Identifier: Apache-2.0
"""Transformers' Auto classes load guarded checkpoints, as models that run rewired or not at all.

Contract: `register_model_types` makes the types `farskip_*` known to transformers, through its own registries; it is
called when both packages are imported (`farskip_compile/__init__.py`).
`AutoConfig` then gives a configuration of a subclass of the original one, which guards what it saves; the Auto classes
for models give the original class with its weights, guarded (`forward`). A class that is called by its own name
(`DeepseekV3ForCausalLM.from_pretrained`) asks no registry, and warns of another type, no more. `guard_saves` gives a
model that is trained rewired such a configuration.

A type is needed before its checkpoint is known, so all types of transformers get one; original configurations are
imported once they are needed.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from farskip_compile.errors import ManifestError
from farskip_compile.guard.forward import guard
from farskip_compile.json_files import write_text
from farskip_compile.manifest.amd_keys import has_amd_keys
from farskip_compile.manifest.files import CONFIG, FILE, KEY, WRITABLE
from farskip_compile.manifest.guarded import ORIGINAL_TYPE, PREFIX, guarded, original
from farskip_compile.manifest.record import Manifest

CLASS_PREFIX = "FarSkip"


def register_model_types() -> None:
    """Let transformers' `AutoConfig`, `AutoModelForCausalLM` and the like load guarded checkpoints.

    A second call changes nothing.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    for name in list(CONFIG_MAPPING):
        if not name.startswith(PREFIX) and PREFIX + name not in CONFIG_MAPPING:
            AutoConfig.register(PREFIX + name, _Configurations)


def guard_saves(model: nn.Module, *, guarded: bool = True) -> Callable[[Manifest], None]:
    """Let `save_pretrained` write a manifest and the guard into `config.json`, whoever calls it.

    Args:
        model: the module. Its configuration is changed in place, so this comes before the model is compiled.
        guarded: False: the manifest alone.

    Returns:
        What is called with the manifest when there is one; until then nothing is guarded. It does nothing for a model
        without a configuration of transformers, which has none to save, and one that is marked by AMD's keys.
    """
    config: Any = getattr(model, "config", None)
    kind = getattr(sys.modules.get("transformers"), "PreTrainedConfig", None)
    if kind is None or not isinstance(config, kind) or has_amd_keys(config.to_dict()):
        return lambda manifest: None
    if guarded and type(config).__module__ != __name__:
        config.__class__ = _guarded_class(type(config))
    return lambda manifest: setattr(config, KEY, manifest.to_json())


class _Configurations:
    """Stands for the configuration class of every guarded type."""

    model_type = ""

    @classmethod
    def from_dict(cls, config: dict[str, Any], **kwargs: Any) -> Any:
        """What `AutoConfig` calls with the `config.json` of a checkpoint."""
        from transformers import CONFIG_MAPPING

        plain = original(config)
        name = plain["model_type"]
        if plain.get("auto_map") or name not in CONFIG_MAPPING or name == config["model_type"]:
            raise ManifestError(
                f"this guarded checkpoint is of the type {name!r}, whose code is not in transformers",
                way_out="farskip_compile.save_manifest(manifest, folder, guard=False) puts its config.json back",
            )
        return _guarded_class(CONFIG_MAPPING[name]).from_dict(plain | {ORIGINAL_TYPE: name}, **kwargs)


def _guarded_class(config_class: Any) -> Any:
    """The subclass of a configuration class whose models are guarded; known to all Auto classes."""
    for known in config_class.__subclasses__():
        if known.__module__ == __name__:
            return known

    def save_pretrained(self: Any, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        config_class.save_pretrained(self, save_directory, *args, **kwargs)
        if not hasattr(self, KEY):  # it was made by `guard_saves`, and nothing was trained yet
            return
        path = Path(save_directory) / CONFIG
        write_text(path, guarded(path.read_text()), way_out=WRITABLE, error=ManifestError)

    body = {"__module__": __name__, "__doc__": config_class.__doc__, "save_pretrained": save_pretrained}
    made = type(CLASS_PREFIX + config_class.__name__, (config_class,), body)
    for auto in _auto_classes():
        auto.register(made, _models(auto, config_class))
    return made


def _auto_classes() -> list[Any]:
    from transformers.models.auto import modeling_auto

    found = [value for name, value in vars(modeling_auto).items() if name.startswith("AutoModel")]
    return [one for one in found if isinstance(one, type) and hasattr(one, "register")]


def _models(auto: Any, config_class: Any) -> Any:
    """Stands for the model class of guarded configurations with one Auto class, which chooses the original one."""

    def plain(config: Any) -> Any:
        found = copy.deepcopy(config)
        found.__class__ = config_class
        return found

    class Models:
        @classmethod
        def from_pretrained(cls, path: str | os.PathLike[str], *args: Any, config: Any, **kwargs: Any) -> Any:
            loaded = auto.from_pretrained(path, *args, config=plain(config), **kwargs)
            if isinstance(loaded, tuple):  # with `output_loading_info=True`
                return _finish(loaded[0], path), *loaded[1:]
            return _finish(loaded, path)

        @classmethod
        def _from_config(cls, config: Any, **kwargs: Any) -> Any:
            return _finish(auto.from_config(plain(config), **kwargs), config.name_or_path)

    return Models


def _finish(model: nn.Module, place: object) -> nn.Module:
    config: Any = model.config
    config.__class__ = _guarded_class(type(config))  # one object, which all parts of the model share
    folder = Path(str(place))
    known = next((file for file in (folder / FILE, folder / CONFIG) if file.exists()), None)
    guard(model, str(known) if known is not None else None)
    return model
