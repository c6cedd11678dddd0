# SPDX-License-Identifier: Apache-2.0
"""Loading and saving of guarded checkpoints of transformers, whose models run rewired or not at all.

Contract: `watch_configurations` and `watch_models` wrap methods of the two classes that all configurations and all
models of transformers derive from. `farskip_compile/__init__.py` calls both functions when both packages are imported.
- Reading: a guarded `config.json` is read as the original (`manifest/guarded.py`) with the key `farskip_model_type`.
- Writing: a configuration with that key writes a guarded `config.json`, whoever saves it.
- Loading: `from_pretrained` of any class, called by an Auto class or by its own name, gives the model with its weights,
  guarded (`forward`). A weight of the manifest's model that the checkpoint does not have is an error that names it.
`guard_saves` gives the key to the configuration of a model that is trained rewired.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import nn

from farskip_compile.base.json_files import write_text
from farskip_compile.base.reading.strict_json import parse_json
from farskip_compile.compiler.guard.forward import guard
from farskip_compile.errors import ManifestError
from farskip_compile.manifest.amd_keys import has_amd_keys
from farskip_compile.manifest.files import CONFIG, FILE, KEY, WRITABLE, load_manifest, read_manifest
from farskip_compile.manifest.guarded import ORIGINAL_TYPE, PREFIX, TYPE, guarded, original
from farskip_compile.manifest.lost import new_parameters, newly_initialised, of_model, refuse_lost
from farskip_compile.manifest.record import Manifest

WATCHED = "farskip_watched"
"""The attribute of a method that is wrapped already."""
INFO = "output_loading_info"
"""The argument of `from_pretrained` that asks for the names of missing weights, together with the model."""
SAVES = "farskip_saves"
"""The attribute of a model without a configuration of transformers: the manifest of its adapters, and the guard."""

_configs_read: ContextVar[list[Mapping[str, Any]] | None] = ContextVar("farskip_read", default=None)
"""The guarded configurations that a running `from_pretrained` has read."""


def watch_configurations() -> None:
    """Let configurations of transformers read and write guarded files; a second call changes nothing."""
    from transformers.configuration_utils import PreTrainedConfig

    configuration: Any = PreTrainedConfig
    read, write = vars(configuration)["_dict_from_json_file"].__func__, configuration.to_json_file
    if hasattr(write, WATCHED):
        return

    @functools.wraps(read)
    def _dict_from_json_file(cls: Any, json_file: Any) -> Any:
        content = read(cls, json_file)
        if str(content.get(TYPE, "")).startswith(PREFIX) and isinstance(content.get(ORIGINAL_TYPE), str):
            content = original(content) | {ORIGINAL_TYPE: content[ORIGINAL_TYPE]}
            configs = _configs_read.get()
            if configs is not None:
                configs.append(content)
        return content

    @functools.wraps(write)
    def to_json_file(self: Any, json_file_path: Any, use_diff: bool = True) -> None:
        if not _is_marked(self):
            write(self, json_file_path, use_diff)
            return
        text = guarded(self.to_json_string(use_diff))
        write_text(Path(json_file_path), text, way_out=WRITABLE, error=ManifestError)

    setattr(to_json_file, WATCHED, True)
    configuration._dict_from_json_file = classmethod(_dict_from_json_file)
    configuration.to_json_file = to_json_file


def watch_models() -> None:
    """Let all model classes of transformers load guarded checkpoints; a second call changes nothing."""
    from transformers.modeling_utils import PreTrainedModel

    models: Any = PreTrainedModel
    load, build = (vars(models)[name].__func__ for name in ("from_pretrained", "_from_config"))
    if hasattr(load, WATCHED):
        return

    @functools.wraps(load)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        configs: list[Mapping[str, Any]] = []
        token = _configs_read.set(configs)
        try:
            model, info = load(cls, pretrained_model_name_or_path, *args, **(kwargs | {INFO: True}))
        finally:
            _configs_read.reset(token)
        subfolder = kwargs.get("subfolder") or ""
        if _is_marked(model.config):
            configs.append(vars(model.config))
        elif not configs and kwargs.get("config") is not None and pretrained_model_name_or_path is not None:
            configs += _guarded_config(str(pretrained_model_name_or_path), kwargs)
        if configs:
            _check_and_guard(model, configs[-1], subfolder, info)
        return (model, info) if kwargs.get(INFO, False) else model

    @functools.wraps(build)
    def _from_config(cls: Any, config: Any, **kwargs: Any) -> Any:
        model = build(cls, config, **kwargs)
        if _is_marked(config):
            guard(model, _manifest_file(Path(str(config.name_or_path))))
        return model

    setattr(from_pretrained, WATCHED, True)
    for method in (from_pretrained, _from_config):
        wrapped: Any = method
        setattr(models, wrapped.__name__, classmethod(wrapped))


def guard_saves(model: Any, *, guarded: bool = True) -> Callable[[Manifest], None]:
    """Let `save_pretrained` write a manifest and the guard into `config.json`, whoever calls it.

    Args:
        model: the module.
        guarded: True to write the manifest and the guard, False to write the manifest alone.

    Returns:
        A function to be called with the manifest when there is one; until then nothing is guarded. For a model without
        a configuration of transformers only its adapters are guarded. The function does nothing for a model that is
        marked by AMD's keys.
    """
    config: Any = getattr(model, "config", None)
    kind = getattr(sys.modules.get("transformers"), "PreTrainedConfig", None)
    if kind is None or not isinstance(config, kind):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return lambda manifest: vars(base).update({SAVES: (manifest, guarded)})
    if has_amd_keys(config.to_dict()):
        return lambda manifest: None
    return lambda manifest: _mark(model, manifest.to_json(), guarded=guarded)


def manifest_of_saves(model: nn.Module) -> tuple[Manifest, bool] | None:
    """Return the manifest that is saved with `model` or its adapters, and whether the guard is, or None."""
    if SAVES in vars(model):
        saves: tuple[Manifest, bool] = vars(model)[SAVES]
        return saves
    config = getattr(model, "config", None)
    manifest = getattr(config, "__dict__", {}).get(KEY)
    if not isinstance(manifest, Mapping):
        return None
    return read_manifest({KEY: manifest}, "the model's configuration"), _is_marked(config)


def _is_marked(config: Any) -> bool:
    return isinstance(getattr(config, "__dict__", {}).get(ORIGINAL_TYPE), str)


def _mark(model: nn.Module, manifest: Any, *, guarded: bool) -> None:
    """Give the manifest, and the key of guarded configurations, to the configurations of the model and its parts."""
    configs: Iterable[Any] = _configurations(model) if guarded else [model.config]
    for config in configs:
        if manifest is not None:
            setattr(config, KEY, manifest)
        if guarded:
            setattr(config, ORIGINAL_TYPE, config.model_type)


def _configurations(model: nn.Module) -> Iterator[Any]:
    """Yield the configurations of the model and of models of transformers in it, which may be saved apart."""
    of_transformers = getattr(sys.modules.get("transformers"), "PreTrainedModel", ())
    yield model.config
    for module in model.modules():
        if isinstance(module, of_transformers) and module.config is not model.config:
            yield module.config


def _check_and_guard(model: nn.Module, content: Mapping[str, Any], subfolder: str, info: Mapping[str, Any]) -> None:
    """Check that all weights were loaded, and guard the model and the checkpoints that it saves."""
    config: Any = model.config
    place = str(config.name_or_path)
    folder, manifest = Path(place) / subfolder, None
    if (folder / FILE).exists():
        manifest = load_manifest(folder)
    elif isinstance(content.get(KEY), Mapping):
        manifest = read_manifest(content, f"the configuration of {place}")
    names = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    if manifest is not None and manifest.fingerprint is not None:  # also weights that transformers may miss
        names |= {*new_parameters(model), *newly_initialised(model.state_dict(keep_vars=True))}
    if lost := of_model(manifest, names):
        refuse_lost(lost, f"the checkpoint {place}")
    _mark(model, manifest.to_json() if manifest is not None else None, guarded=True)
    guard(model, _manifest_file(folder))


def _manifest_file(folder: Path) -> str | None:
    """Return the file that holds the manifest of a local checkpoint, or None."""
    return next((str(file) for file in (folder / FILE, folder / CONFIG) if file.exists()), None)


def _guarded_config(place: str, kwargs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the `config.json` of a local or downloaded checkpoint, if it is guarded.

    transformers does not read it where the caller gives another configuration.
    """
    from transformers.utils.hub import cached_file

    options: dict[str, Any] = {name: kwargs[name] for name in ("cache_dir", "revision", "subfolder") if name in kwargs}
    problems = ("gated_repo", "missing_entries", "connection_errors")
    ignored = {f"_raise_exceptions_for_{problem}": False for problem in problems}
    file = cached_file(place, CONFIG, local_files_only=True, **options, **ignored)
    if file is None:
        return []
    content = parse_json(Path(file).read_text())
    return [original(content)] if str(content.get(TYPE, "")).startswith(PREFIX) else []
