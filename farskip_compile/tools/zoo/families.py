# SPDX-License-Identifier: Apache-2.0
"""Find the Mixture-of-Experts causal language models of the installed `transformers`, by introspection.

Contract: nothing comes in; one `Family` goes out for each pair of configuration and causal language model, sorted by
model type. No model is built, nothing is downloaded, no list of model names is consulted. A class that can't be
imported stays in the list, with the reason.

1. Take every configuration class that `transformers` registers.
2. It has experts if one of its fields counts routed experts, by the shape of the field's name. Fields of a
   sub-configuration count if that is only a part (no model type of its own): a multimodal model is not a family, its
   text part is one.
3. Its model is the causal language model that `transformers` registers for it, or else a class `...ForCausalLM` of its
   own modeling module that is made for this configuration.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

CAUSAL_LM = "ForCausalLM"
_COUNT = re.compile(r"^(?=.*experts)(?=.*(^|_)(n|num)_)(?!.*(shared|per_tok|top_?k|group|layer))")


@dataclasses.dataclass(frozen=True)
class Family:
    """A Mixture-of-Experts model of `transformers`: what to import."""

    model_type: str
    """As transformers calls it."""
    class_name: str
    """Name of the model's class."""
    module: str
    """Import path of the module that holds the model's class."""
    config_class: str
    """Name of the class of its configuration."""
    config_module: str
    """Import path of the module that holds it."""
    reason: str | None = None
    """Why the class can't be imported; None if it can."""

    def load(self) -> tuple[type[Any], type[Any]]:
        """The class of the model and that of its configuration."""
        model = getattr(importlib.import_module(self.module), self.class_name)
        return model, getattr(importlib.import_module(self.config_module), self.config_class)


def counts_experts(name: str) -> bool:
    """Whether a field of this name counts routed experts: `num_experts`, `n_routed_experts`, `moe_num_experts`."""
    return _COUNT.search(name) is not None


def moe_families() -> list[Family]:
    """All families, sorted by model type."""
    return list(_found())


@functools.cache
def _found() -> tuple[Family, ...]:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = []
    for model_type in CONFIG_MAPPING:
        try:
            config_class = CONFIG_MAPPING[model_type]
        except Exception:  # a configuration that can't be imported has no fields to judge by
            continue
        # one configuration may be registered under several names: its own stands for all
        if config_class.model_type != model_type or not has_experts(config_class):
            continue
        family = _family(config_class, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type))
        if family is not None:
            found.append(family)
    return tuple(sorted(found, key=lambda family: family.model_type))


def has_experts(config_class: type[Any]) -> bool:
    """Whether a configuration counts routed experts, itself or in a part of it."""
    if any(counts_experts(field.name) and _is_integer(field) for field in dataclasses.fields(config_class)):
        return True
    parts: dict[str, Any] = getattr(config_class, "sub_configs", None) or {}
    return any(hasattr(part, "model_type") and not part.model_type and has_experts(part) for part in parts.values())


def _is_integer(field: dataclasses.Field[Any]) -> bool:
    return re.search(r"\bint\b", str(field.type).replace("<class 'int'>", "int")) is not None


def _family(config_class: type[Any], registered: str | None) -> Family | None:
    import transformers

    module = config_class.__module__.replace(".configuration_", ".modeling_")
    described = {
        "model_type": config_class.model_type,
        "config_class": config_class.__name__,
        "config_module": config_class.__module__,
    }
    if registered is not None:
        try:
            model_class = getattr(transformers, registered)
        except Exception as error:
            return Family(class_name=registered, module=module, reason=f"{type(error).__name__}: {error}", **described)
        if not registered.endswith(CAUSAL_LM):
            return None  # a multimodal model stands in for a causal language model
        return Family(class_name=registered, module=model_class.__module__, **described)
    try:
        spec = importlib.util.find_spec(module)
        # most of these modules are large, and have none: look before importing
        if spec is None or spec.origin is None or CAUSAL_LM not in Path(spec.origin).read_text(encoding="utf-8"):
            return None
        members = vars(importlib.import_module(module))
    except Exception:  # no model beside the configuration
        return None
    for name, member in members.items():
        if name.endswith(CAUSAL_LM) and inspect.isclass(member) and getattr(member, "config_class", 0) is config_class:
            return Family(class_name=name, module=module, **described)
    return None
