# SPDX-License-Identifier: Apache-2.0
"""Guarded checkpoints in vLLM: configurations of a type `farskip_*` are read as those of the original type.

In:    vLLM's own parser of Hugging Face configurations.
Out:   the same parser, for which a guarded `config.json` says what it said before it was guarded.
Never: lets one load whose manifest is gone: the guard is taken off because the manifest is enforced instead.

Without this plugin vLLM refuses the type by name, as transformers does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from farskip_compile.errors import ManifestError
from farskip_compile.manifest.amd_keys import has_amd_keys
from farskip_compile.manifest.files import CONFIG, FILE, KEY
from farskip_compile.manifest.guarded import ORIGINAL_TYPE, original

HF = "hf"
"""vLLM's name of the format."""


def install(parsers: dict[str, Any]) -> None:
    """Replace the parser in vLLM's registry by one that knows guarded checkpoints; a second call changes nothing."""
    plain = parsers[HF]
    if plain.__module__ == __name__:
        return

    class GuardedParser(plain):  # type: ignore[misc,valid-type]
        """vLLM's parser, to which guarded configurations look like the original ones."""

        def parse(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            with _unguarded():
                return super().parse(model, *args, **kwargs)

    GuardedParser.__module__ = __name__
    parsers[HF] = GuardedParser


@contextmanager
def _unguarded() -> Iterator[None]:
    """Within the block, transformers reads what was in a guarded `config.json` before."""
    import transformers

    configuration: Any = transformers.PreTrainedConfig
    plain = vars(configuration)["get_config_dict"]

    def get_config_dict(cls: Any, place: Any, /, **kwargs: Any) -> Any:
        content, rest = plain.__get__(None, cls)(place, **kwargs)
        if ORIGINAL_TYPE in content:
            _refuse_without_manifest(content, place, kwargs.get("revision"))
            content = original(content)
        return content, rest

    configuration.get_config_dict = classmethod(get_config_dict)
    try:
        yield
    finally:
        configuration.get_config_dict = plain


def _refuse_without_manifest(content: dict[str, Any], place: Any, revision: str | None) -> None:
    from vllm.transformers_utils.repo_utils import file_or_path_exists

    there = isinstance(content.get(KEY), dict) or has_amd_keys(content)
    if not there and not file_or_path_exists(place, FILE, revision):
        raise ManifestError(
            f"{place} is guarded, for a FarSkip form of the model, and says nowhere which: there is no {FILE}, and "
            f"{CONFIG} has no {KEY!r}",
            way_out=f"restore {FILE}, or write it anew: farskip_compile.save_manifest",
        )
