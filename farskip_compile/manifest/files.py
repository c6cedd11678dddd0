# SPDX-License-Identifier: Apache-2.0
"""Manifests on disk: a file of their own, one beside a checkpoint, or a key of its `config.json`.

Contract: a path is one of three things.
  a folder        `farskip.json` in it, beside the weights; read from its configuration if that is all there is
  `config.json`   its key `farskip`; every other character of the file stays as it was
  any other file  the manifest and nothing else
In the first two, `config.json` is guarded (`guarded`), so that nothing loads the weights in their original wiring. The
same goes for `adapter_config.json`, PEFT's configuration of an adapter (`guarded_adapter`).
A write replaces the whole file or nothing (`json_files`). Never: overwrites a file that is not a manifest, or AMD's
keys; reads what is not a regular file, or too large for a manifest (`reading`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farskip_compile.base.json_files import write_text
from farskip_compile.base.reading.files import DOCUMENT_BYTES, read_bytes
from farskip_compile.base.reading.strict_json import parse_json
from farskip_compile.errors import ManifestError
from farskip_compile.manifest.amd_keys import AMD_KEYS, from_amd_keys, has_amd_keys
from farskip_compile.manifest.guarded import guarded, is_guarded, unguarded
from farskip_compile.manifest.guarded_adapter import guarded_adapter, is_guarded_adapter, unguarded_adapter
from farskip_compile.manifest.json_text import compact, with_key, without_key
from farskip_compile.manifest.record import Manifest

FILE = "farskip.json"
"""The manifest's name in a checkpoint folder."""
CONFIG = "config.json"
ADAPTER = "adapter_config.json"
KEY = "farskip"
"""Key of the manifest in a configuration."""
WRITABLE = "give an existing folder with the right to write; what was there before is unchanged"


def write_manifest(manifest: Manifest, path: str | os.PathLike[str], *, guard: bool = True) -> Path:
    """Write `manifest` into a checkpoint folder, its `config.json`, or a JSON file of its own.

    Args:
        manifest: what to write.
        path: the folder (`farskip.json` is written there), its `config.json` or `adapter_config.json`, or another file.
        guard: give a checkpoint of transformers a `model_type`, and an adapter of PEFT a `peft_type`, that loaders
            without this package refuse, and that both know where this package is imported. False leaves, or puts back,
            the original one, as for a manifest under which the model computes what it does as written.

    Returns:
        The file that holds the manifest.

    Raises:
        ManifestError: it can't be written there, or would overwrite something that is not a manifest.
    """
    target = Path(path)
    file = target / FILE if target.is_dir() else target
    edited: dict[Path, str] = {}
    for config in (file.with_name(CONFIG), file.with_name(ADAPTER)):
        if file == config or (target.is_dir() and config.exists()):
            text = _with_manifest(config, manifest, guard=guard, needed=file == config)  # refused before any write
            edited |= {config: text} if text is not None else {}
    is_own = file.name not in (CONFIG, ADAPTER)
    if is_own and file.exists() and "schema" not in _read(file)[1]:
        raise ManifestError(
            f"{file} exists and is not a manifest", way_out="give another name, or the folder of the checkpoint"
        )
    for config, text in edited.items():  # first: a process that ends behind it leaves a guarded checkpoint
        write_text(config, text, way_out=WRITABLE, error=ManifestError)
    if is_own:
        write_text(file, compact(manifest.to_json()) + "\n", way_out=WRITABLE, error=ManifestError)
    return file


def _with_manifest(config: Path, manifest: Manifest, *, guard: bool, needed: bool) -> str | None:
    """Return the text of a configuration with its guard, or without it; None: the file stays as it is.

    The text holds the manifest if that is `needed`, if there was one, and if it is guarded, to go along when the
    model is saved elsewhere.
    """
    text, content = _read(config)
    if needed:
        _refuse_amd_keys(config, content)
    put, away, has = _GUARDS[config.name]
    edited = put(text) if guard and manifest.changes_function else away(text)
    if needed or has(edited) or (config.name == CONFIG and isinstance(content.get(KEY), Mapping)):
        return with_key(edited, KEY, manifest.to_json())
    if config.name == ADAPTER:  # of a key that it does not know PEFT warns
        edited = without_key(edited, KEY)
    return edited if edited != text else None


_GUARDS = {
    CONFIG: (guarded, unguarded, is_guarded),
    ADAPTER: (guarded_adapter, unguarded_adapter, is_guarded_adapter),
}
"""Configuration -> what guards its text, what takes the guard away, and whether there is one."""


def _refuse_amd_keys(target: Path, config: Mapping[str, Any]) -> None:
    theirs = [key for key in AMD_KEYS if key in config and not (key == KEY and isinstance(config[key], Mapping))]
    if theirs:
        raise ManifestError(
            f"{target} has AMD's key {theirs[0]!r}; a manifest under {KEY!r} would change what it says to AMD's code",
            way_out=f"save the manifest beside it: farskip_compile.save_manifest(manifest, {str(target.parent)!r})",
        )


def load_manifest(path: str | os.PathLike[str], *, largest: int = DOCUMENT_BYTES) -> Manifest:
    """Read a manifest from disk.

    Args:
        path: a checkpoint folder (`farskip.json`, else `config.json` with our key or AMD's, else `adapter_config.json`
            with our key), or a file.
        largest: bytes that the file may have.

    Raises:
        ManifestError: there is none, or it is damaged or too large; names the file and the key.
    """
    target = Path(path)
    files = (
        [file for file in (target / FILE, target / CONFIG, target / ADAPTER) if file.exists()]
        if target.is_dir()
        else [target]
    )
    if not files:
        raise ManifestError(
            f"there is no manifest in {target}: neither {FILE} nor {CONFIG} nor {ADAPTER}",
            way_out="make one: farskip_compile.save_manifest(model, folder, ...)",
        )
    return read_manifest(_read(files[0], largest)[1], str(files[0]))


def read_manifest(data: Mapping[str, Any], origin: str) -> Manifest:
    """Return the manifest that parsed JSON holds.

    Args:
        data: a manifest, or a Hugging Face configuration with our key or with AMD's.
        origin: where it is from, for messages.

    Raises:
        ManifestError: there is none, or it is damaged; `origin` says where.
    """
    if isinstance(data.get(KEY), Mapping):
        return Manifest.from_json(data[KEY], origin)
    if has_amd_keys(data):
        return from_amd_keys(data, origin)
    if "schema" in data:
        return Manifest.from_json(data, origin)
    raise ManifestError(
        f"{origin} holds no manifest: neither an object under {KEY!r}, nor AMD's keys ({', '.join(AMD_KEYS)}), nor the "
        "keys of a manifest",
        way_out="make one: farskip_compile.save_manifest(model, path, ...)",
    )


def _read(path: Path, largest: int = DOCUMENT_BYTES) -> tuple[str, dict[str, Any]]:
    """Return the JSON object in a file, as text and parsed."""
    text = _text(path, largest)
    try:
        found = parse_json(text)
    except ValueError as error:
        raise ManifestError(f"{path} is not JSON: {error}", way_out="restore the file, or write it anew") from error
    if not isinstance(found, dict):
        raise ManifestError(f"{path} holds no JSON object", way_out="give a manifest or a config.json")
    return text, found


def _text(path: Path, largest: int) -> str:
    try:
        return read_bytes(path, largest).decode()  # not read_text, which would make other line ends of \r\n
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not text in UTF-8: {error}", way_out="restore the file") from error
    except OSError as error:
        raise ManifestError(
            f"can't read {path}: {error.strerror}", way_out="give a checkpoint folder, its config.json, or a manifest"
        ) from error
