# SPDX-License-Identifier: Apache-2.0
"""What a configuration of vLLM asks of this package, if anything.

In:    a `VllmConfig`.
Out:   `Asked`, or None: then nothing of vLLM is touched.
Never: communicates; needs a GPU; changes anything but `additional_config["farskip"]`, which vLLM hashes.

Asked by, in this order:
1. `additional_config["farskip"]`: options of `ServingOptions`, such as `{"connectivity": "full"}`;
2. the manifest beside the weights: `farskip.json`, or the object under `farskip` in `config.json`;
3. AMD's keys in `config.json`;
4. vLLM's own option `backend`, if it is `farskip`.
A manifest holds whatever the options say: options that contradict it are refused, not preferred.

`settle` writes what came of it back into `additional_config`: the options, the digest of the manifest, and the hash of
this package's source. They are a part of vLLM's cache keys from then on, and of what its workers get, who look the
manifest up again and refuse another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from farskip_compile.base.reading.files import read_bytes
from farskip_compile.base.reading.strict_json import parse_json
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.compiler.ranks.identity import source_hash
from farskip_compile.errors import ConfigError, ManifestError
from farskip_compile.manifest import Manifest, load_manifest, read_manifest
from farskip_compile.manifest.amd_keys import has_amd_keys
from farskip_compile.manifest.files import CONFIG, FILE, KEY
from farskip_compile.text_utils import did_you_mean

ASKED = "farskip"
"""Key in `additional_config`."""
ROWS_MULTIPLE = 64
"""Vocabularies are padded to it: `DEFAULT_VOCAB_PADDING_SIZE` of vLLM, which none of its models changes."""
SETTLED = "settled"
"""Key there for what `settle` found."""


@dataclass(frozen=True)
class ServingOptions:
    """What `additional_config["farskip"]` may hold. All but `overlap` are those of `FarSkipConfig`."""

    connectivity: Any = None
    layers: Any = None
    manifest: str | None = None
    merge_reductions: bool = False
    kinds: Mapping[str, str] | None = None
    overlap: bool = False
    """Tensor parallelism: run all-reduces beside the attention or the experts that do not wait for them."""


@dataclass(frozen=True)
class Asked:
    """What is asked of a model that vLLM serves."""

    options: ServingOptions
    manifest: Manifest | None
    by: str
    """Who asks, for messages."""

    def config(self, **options: Any) -> FarSkipConfig:
        """The configuration of the passes; `options` are those that depend on how vLLM compiles."""
        own = self.options
        return FarSkipConfig(
            connectivity=own.connectivity,
            layers=tuple(own.layers) if own.layers is not None else None,
            manifest=(
                replace(self.manifest, fused=True, rows_multiple=ROWS_MULTIPLE) if self.manifest is not None else None
            ),
            merge_reductions=own.merge_reductions,
            kinds={"*inputs_embeds*": "embedding", **(own.kinds or {})},  # with images; a pipeline stage is refused
            **options,
        )

    @property
    def settled(self) -> dict[str, Any]:
        """Plain data that tells this from anything else that could be asked."""
        return {
            "by": self.by,
            "manifest": self.manifest.digest if self.manifest is not None else None,
            "source": source_hash(),
        }

    @property
    def digest(self) -> str:
        """Hash of it."""
        data = {**vars(self.options), "settled": self.settled}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def settle(vllm_config: Any) -> Asked | None:
    """What `vllm_config` asks for; written into it. Safe to call again, in any process.

    Raises:
        ConfigError: an unknown or wrong option, or one that contradicts the manifest.
        ManifestError: the manifest is damaged, or another one than when it was settled first.
    """
    if vllm_config.model_config is None:
        return None
    additional = vllm_config.additional_config
    given = additional.get(ASKED) if isinstance(additional, Mapping) else None
    before = given.get(SETTLED) if isinstance(given, Mapping) else None
    asked = _asked(given, vllm_config)
    if asked is None:
        return None
    asked.config().to_json()  # contradictions, before any worker starts
    if before is not None and before != json.loads(json.dumps(asked.settled)):
        raise ManifestError(
            f"what {asked.by} asks for, or the source of farskip-compile, has changed while vLLM started",
            way_out="start vLLM again, with the same installation on all hosts",
        )
    vllm_config.additional_config = {
        **(additional if isinstance(additional, Mapping) else {}),
        ASKED: {**{key: value for key, value in vars(asked.options).items() if value}, SETTLED: asked.settled},
    }
    return asked


def _asked(given: object, vllm_config: Any) -> Asked | None:
    options = _options(given) if given is not None else None
    model = vllm_config.model_config
    manifest = load_manifest(options.manifest) if options is not None and options.manifest else manifest_of(model)
    if options is not None:
        settled = given.get(SETTLED, {}) if isinstance(given, Mapping) else {}
        return Asked(options, manifest, settled.get("by", f"additional_config[{ASKED!r}]"))
    if manifest is not None:
        return Asked(ServingOptions(), manifest, str(manifest)) if manifest.changes_function else None
    if vllm_config.compilation_config.backend == ASKED:
        return Asked(ServingOptions(), None, f"the compilation config's backend {ASKED!r}")
    return None


def _options(given: object) -> ServingOptions:
    way_out = '--additional-config \'{"farskip": {"connectivity": "full"}}\''
    if not isinstance(given, Mapping):
        raise ConfigError(f"additional_config[{ASKED!r}] is {given!r}, not a mapping of options", way_out=way_out)
    known = [entry.name for entry in fields(ServingOptions)]
    for key in given:
        if key not in (*known, SETTLED):
            raise ConfigError(
                f"additional_config[{ASKED!r}] has an unknown option {key!r}",
                way_out=did_you_mean(str(key), known, f"known options: {', '.join(known)}"),
            )
    found = ServingOptions(**{key: value for key, value in given.items() if key != SETTLED})
    if not isinstance(found.overlap, bool):
        raise ConfigError(f"overlap={found.overlap!r} is neither true nor false", way_out=way_out)
    return found


def manifest_of(model_config: Any) -> Manifest | None:
    """The manifest of the checkpoint that vLLM is about to serve: a folder, or a repository on a hub.

    Raises:
        ManifestError: it is damaged.
    """
    place, revision = model_config.model, model_config.revision
    folder = Path(place)
    if folder.is_dir():
        if (folder / FILE).exists():
            return load_manifest(folder)
        config = folder / CONFIG
        content = parse_json(read_bytes(config).decode()) if config.exists() else {}
        return _in_configuration(content, str(config))
    from vllm.transformers_utils.repo_utils import file_or_path_exists, get_hf_file_to_dict

    if file_or_path_exists(place, FILE, revision):
        return read_manifest(get_hf_file_to_dict(FILE, place, revision), f"{place}/{FILE}")
    return _in_configuration(model_config.hf_config.to_dict(), f"{place}/{CONFIG}")


def _in_configuration(content: object, origin: str) -> Manifest | None:
    if not isinstance(content, Mapping):
        return None
    there = isinstance(content.get(KEY), Mapping) or has_amd_keys(content)
    return read_manifest(content, origin) if there else None
