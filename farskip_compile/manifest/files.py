"""Manifests on disk: a file of their own, one beside a checkpoint, or a key of a Hugging Face `config.json`.

Contract: a path is one of three things.
  a folder        `farskip.json` in it, beside the weights; read from `config.json` if that is all there is
  `config.json`   its key `farskip`; every other character of the file stays as it was
  any other file  the manifest and nothing else
A write replaces the whole file or nothing (`json_files`). Never: overwrites a file that is not a manifest, or AMD's
keys; reads what is not a regular file, or too large for a manifest (`reading`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farskip_compile.errors import ManifestError
from farskip_compile.json_files import write_text
from farskip_compile.manifest.amd_keys import AMD_KEYS, from_amd_keys, has_amd_keys
from farskip_compile.manifest.json_text import compact, with_key
from farskip_compile.manifest.record import Manifest
from farskip_compile.reading import DOCUMENT_BYTES, parse_json, read_bytes

FILE = "farskip.json"
"""The manifest's name in a checkpoint folder."""
CONFIG = "config.json"
KEY = "farskip"
"""Of the manifest in a `config.json`."""
WRITABLE = "give an existing folder with the right to write; what was there before is unchanged"


def save_manifest(manifest: Manifest, path: str | os.PathLike[str]) -> Path:
    """Write `manifest` into a checkpoint folder, its `config.json`, or a JSON file of its own; returns the file.

    Raises:
        ManifestError: it can't be written there, or would overwrite something that is not a manifest.
    """
    target = Path(path)
    if target.is_dir():
        target = target / FILE
    if target.name != CONFIG:
        if target.exists() and "schema" not in _object(target):
            raise ManifestError(
                f"{target} exists and is not a manifest", way_out="give another name, or the folder of the checkpoint"
            )
        write_text(target, compact(manifest.to_json()) + "\n", way_out=WRITABLE, error=ManifestError)
        return target
    config = _object(target)
    theirs = [key for key in AMD_KEYS if key in config and not (key == KEY and isinstance(config[key], Mapping))]
    if theirs:
        raise ManifestError(
            f"{target} has AMD's key {theirs[0]!r}; a manifest under {KEY!r} would change what it says to AMD's code",
            way_out=f"save the manifest beside it: save_manifest(manifest, {str(target.parent)!r})",
        )
    text = with_key(_text(target), KEY, manifest.to_json())
    write_text(target, text, way_out=WRITABLE, error=ManifestError)
    return target


def load_manifest(path: str | os.PathLike[str], *, largest: int = DOCUMENT_BYTES) -> Manifest:
    """Read a manifest out of a checkpoint folder (`farskip.json`, else `config.json` with our key or AMD's) or a file.
    A file of more than `largest` bytes is refused.

    Raises:
        ManifestError: there is none, or it is damaged; names the file and the key.
    """
    target = Path(path)
    files = [file for file in (target / FILE, target / CONFIG) if file.exists()] if target.is_dir() else [target]
    if not files:
        raise ManifestError(
            f"there is no manifest in {target}: neither {FILE} nor {CONFIG}",
            way_out="make one: farskip_compile.save_manifest(farskip_compile.describe(model, ...), folder)",
        )
    return read_manifest(_object(files[0], largest), str(files[0]))


def read_manifest(data: Mapping[str, Any], origin: str) -> Manifest:
    """The manifest that parsed JSON holds: it may be a Hugging Face configuration with our key or with AMD's.

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
        way_out="make one: farskip_compile.save_manifest(farskip_compile.describe(model, ...), path)",
    )


def _object(path: Path, largest: int = DOCUMENT_BYTES) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        found = parse_json(_text(path, largest))
    except ValueError as error:
        raise ManifestError(f"{path} is not JSON: {error}", way_out="restore the file, or write it anew") from error
    if not isinstance(found, dict):
        raise ManifestError(f"{path} holds no JSON object", way_out="give a manifest or a config.json")
    return found


def _text(path: Path, largest: int = DOCUMENT_BYTES) -> str:
    try:
        return read_bytes(path, largest).decode()  # not read_text, which would make other line ends of \r\n
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not text in UTF-8: {error}", way_out="restore the file") from error
    except OSError as error:
        raise ManifestError(
            f"can't read {path}: {error.strerror}", way_out="give a checkpoint folder, its config.json, or a manifest"
        ) from error
