"""The models that `farskip simulate` knows by name: published dimensions, for the code of transformers.

Contract: data, in `architectures.json`. `architecture(name)` gives the entry; a folder with a `config.json` of
transformers is one, too. Nothing is built here, and nothing is downloaded.

The passes never see these names: they find everything by dataflow, here as everywhere. `cuts` names the matrices of the
attention for the models whose plan for tensor parallelism in transformers leaves the attention whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from farskip_compile.errors import ConfigError
from farskip_compile.json_files import Reader
from farskip_compile.text_utils import did_you_mean


@dataclass(frozen=True)
class Architecture:
    """One model: what to request from transformers."""

    name: str
    model_type: str
    """As transformers calls it."""
    fields: Mapping[str, Any]
    """Fields of its configuration that are not the defaults."""
    source: str
    """Where the dimensions are published."""
    cuts: Mapping[str, str] = field(default_factory=dict)
    """For tensor parallelism, in addition to the plan of transformers."""
    folder: Path | None = None
    """A folder with a `config.json`, in place of all the above."""

    def config(self, layers: int | None = None) -> Any:
        """The configuration of transformers.

        Args:
            layers: only this many, from the first; None: all.

        Raises:
            ConfigError: transformers has no such model, or the model has fewer layers.
        """
        from transformers import AutoConfig

        try:
            if self.folder is not None:
                config = AutoConfig.from_pretrained(self.folder)
            else:
                config = AutoConfig.for_model(self.model_type, **self.fields)
        except (ValueError, OSError, KeyError) as error:
            raise ConfigError(
                f"transformers can't make a configuration of {self.name}: {error}",
                way_out="a newer transformers may know the model",
            ) from error
        config = config.get_text_config()
        if layers is not None:
            if not 1 <= layers <= config.num_hidden_layers:
                raise ConfigError(f"{self.name} has {config.num_hidden_layers} layers, not {layers}")
            config.num_hidden_layers = layers
            for kinds in ("layer_types", "mlp_layer_types"):
                if getattr(config, kinds, None) is not None:
                    setattr(config, kinds, getattr(config, kinds)[:layers])
        return config


def _known() -> tuple[Architecture, ...]:
    text = (resources.files("farskip_compile.simulate") / "architectures.json").read_text(encoding="utf-8")
    reader = Reader("architectures.json")
    return tuple(reader.decode(Architecture, entry) for entry in json.loads(text))


KNOWN = _known()
"""The models with a name."""


def architecture(name: str) -> Architecture:
    """The entry called `name`, or that of a folder with a `config.json`.

    Raises:
        ConfigError: there is neither.
    """
    known = {one.name: one for one in KNOWN}
    if name in known:
        return known[name]
    folder = Path(name)
    if (folder / "config.json").is_file():
        return Architecture(folder.resolve().name, "", {}, str(folder), folder=folder)
    raise ConfigError(
        f"no model is called {name!r}, and there is no folder of that name with a config.json",
        way_out=did_you_mean(name, known, always=f"one of {', '.join(known)}, or a folder with a config.json"),
    )
