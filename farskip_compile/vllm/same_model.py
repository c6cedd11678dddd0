# SPDX-License-Identifier: Apache-2.0
"""Refuse the manifest of another model while vLLM is configured: no process runs yet, and no weights are loaded.

In:    a configuration of vLLM's whose model type transformers has, too.
Out:   nothing, or a `ManifestError` that names the first parameter that differs.
Never: loads or allocates a weight, or downloads code. The model is built on the meta device, by the class that the
       checkpoint's configuration names. Where there is no such class, or the checkpoint is quantised (its parameters
       are not the class's), nothing is compared here, and the compiled graph alone is compared, later.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from farskip_compile.manifest.check import check_whole
from farskip_compile.manifest.fingerprint import parameters_of
from farskip_compile.manifest.patterns import ParameterShape
from farskip_compile.vllm.asked import Asked

log = logging.getLogger("vllm.farskip")


def refuse_other_model(vllm_config: Any, asked: Asked) -> None:
    """Compare the model that `vllm_config` names with the manifest that asks for its rewiring.

    Raises:
        ManifestError: the manifest is that of another model.
    """
    if asked.manifest is None or asked.manifest.fingerprint is None:
        return
    shapes = _shapes(vllm_config.model_config.hf_config)
    if shapes is not None:
        check_whole(asked.manifest, shapes)


def _shapes(config: Any) -> dict[str, ParameterShape] | None:
    """Return the shape of each parameter of the model of `config` by name; None if transformers has no such model."""
    import transformers

    names = getattr(config, "architectures", None) or ()
    cls = next((found for name in names if (found := getattr(transformers, name, None)) is not None), None)
    if cls is None or not isinstance(config, cls.config_class) or getattr(config, "quantization_config", None):
        return None
    try:
        with torch.device("meta"):
            return parameters_of(cls(config))
    except Exception as error:  # of code that vLLM does not run: no reason to keep vLLM from starting
        log.warning("the manifest is compared when the model is compiled; %s can't be built: %s", cls.__name__, error)
        return None
