# SPDX-License-Identifier: Apache-2.0
"""Where vLLM is entered: the only file that replaces something of vLLM's.

Contract: `install` wraps some of its functions. Each wrapper asks first whether the configuration asks for rewiring
(`asked.settle`), and calls the original at once if it does not. What is not loaded yet is wrapped once it is needed.

    EngineArgs.create_engine_config            refuse what can't be served, and the manifest of another model, before
                                               any process starts
    HFConfigParser                             guarded checkpoints (`checkpoints`)
    VllmConfig.compute_hash                    of a configuration that EngineArgs has not made
    CompilationConfig.init_backend             the backend gets graphs rewired: whole, before vLLM splits them
    WorkerWrapperBase.init_device              before the model is made: `shared_experts`, the group of `overlap`
    WorkerWrapperBase.compile_or_warm_up_model after the warm-up: `outcome`

Private to vLLM; checked by running on 0.31.0 and 0.32.0.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

INSTALLED = "farskip_installed"
"""Attribute of a module of vLLM's that was wrapped."""
WORKERS = "vllm.v1.worker.worker_base"
RUNNERS = "vllm.model_executor.layers.fused_moe.runner.moe_runner"


def install() -> None:
    """Wrap what is loaded; a second call changes nothing."""
    for name in PLACES:
        if name in sys.modules:
            _wrap(name)


def _wrap(name: str) -> None:
    module = importlib.import_module(name)
    if not getattr(module, INSTALLED, False):
        setattr(module, INSTALLED, True)
        PLACES[name](module)


def _settled(vllm_config: Any) -> Any:
    from farskip_compile.vllm.asked import settle

    return settle(vllm_config)


def _arguments(module: Any) -> None:
    plain = module.EngineArgs.create_engine_config

    @functools.wraps(plain)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = plain(self, *args, **kwargs)
        if (asked := _settled(found)) is not None:
            from farskip_compile.vllm.refusals import refuse_unsupported
            from farskip_compile.vllm.same_model import refuse_other_model

            refuse_unsupported(found, asked)
            refuse_other_model(found, asked)
            _wrap(WORKERS)  # the engine may run in this process
        return found

    module.EngineArgs.create_engine_config = create_engine_config


def _parsers(module: Any) -> None:
    from farskip_compile.vllm import checkpoints

    checkpoints.install(module._CONFIG_FORMAT_TO_CONFIG_PARSER)


def _backends(module: Any) -> None:
    plain = module.CompilationConfig.init_backend

    @functools.wraps(plain)
    def init_backend(self: Any, vllm_config: Any, *args: Any, is_encoder: bool = False, **kwargs: Any) -> Any:
        found = plain(self, vllm_config, *args, is_encoder=is_encoder, **kwargs)
        asked = None if is_encoder else _settled(vllm_config)
        if asked is None:
            return found
        from farskip_compile.vllm.backends import rewiring_backend
        from farskip_compile.vllm.refusals import refuse_unsupported

        refuse_unsupported(vllm_config, asked)
        return rewiring_backend(found, self, asked)

    module.CompilationConfig.init_backend = init_backend


def _hashes(module: Any) -> None:
    plain = module.VllmConfig.compute_hash

    @functools.wraps(plain)
    def compute_hash(self: Any, *args: Any, **kwargs: Any) -> Any:
        _settled(self)
        return plain(self, *args, **kwargs)

    module.VllmConfig.compute_hash = compute_hash


def _workers(module: Any) -> None:
    wrapper = module.WorkerWrapperBase
    plain = wrapper.init_device

    @functools.wraps(plain)
    def init_device(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = _settled(self.vllm_config)
        if asked is not None and asked.options.overlap:
            from farskip_compile.vllm import shared_experts

            shared_experts.install(importlib.import_module(RUNNERS).MoERunner)
        found = plain(self, *args, **kwargs)
        if asked is not None and asked.options.overlap and self.vllm_config.parallel_config.tensor_parallel_size > 1:
            from farskip_compile.vllm import overlap

            overlap.own_group()
        return found

    def compile_or_warm_up_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = self.worker.compile_or_warm_up_model(*args, **kwargs)
        if (asked := _settled(self.vllm_config)) is not None:
            from farskip_compile.vllm import outcome

            outcome.check(self.worker, asked)
        return found

    wrapper.init_device, wrapper.compile_or_warm_up_model = init_device, compile_or_warm_up_model


PLACES: dict[str, Callable[[Any], None]] = {
    "vllm.engine.arg_utils": _arguments,
    "vllm.transformers_utils.config": _parsers,
    "vllm.config.vllm": _hashes,
    "vllm.config.compilation": _backends,
    WORKERS: _workers,
}
"""Module of vLLM -> what is wrapped in it."""
