# SPDX-License-Identifier: Apache-2.0
"""What each worker asserts once its model is warm: what runs in it is what was asked for.

In:    a worker of vLLM, after it has compiled and warmed up its model, or loaded compiled code from a cache.
Out:   one line in its log; from then on a model that skips its compiled code raises.
Never: takes anybody's word but that of the graphs themselves: they say what they are when they run (`rewiring`).
"""

from __future__ import annotations

import logging
from typing import Any

from farskip_compile.errors import OriginalWiringError, VerificationError
from farskip_compile.records.compile import Outcome
from farskip_compile.vllm.asked import Asked
from farskip_compile.vllm.rewiring import AS_ASKED, ran

log = logging.getLogger("vllm.farskip")
"""Below vLLM's, whose handlers it has."""
GUARDED = "farskip_guarded"


def check(worker: Any, asked: Asked) -> None:
    """Check that the model of `worker` has run rewired, and let it run in no other way.

    Raises:
        OriginalWiringError: it has not, for the reason that can be seen.
        VerificationError: compiled code ran that was made for something else.
    """
    stale = next((one for one in ran if one["digest"] != asked.digest), None)
    if stale is not None:
        raise VerificationError(
            f"stale compiled code ran, made for something else than {asked.by} asks for: {stale['said']}",
            way_out="empty vLLM's cache (VLLM_CACHE_ROOT, ~/.cache/vllm/torch_compile_cache); and please report this",
        )
    found = next((one for one in ran if one["outcome"] in map(str, AS_ASKED)), None)
    if found is None:
        raise OriginalWiringError(
            f"{asked.by} asks for a rewired model, and {_why(worker)}: it would answer in its original wiring",
            way_out="a model whose class vLLM compiles (@support_torch_compile), with its warm-up",
        )
    if asked.manifest is not None and asked.manifest.changes_function and found["outcome"] == str(Outcome.UNCHANGED):
        raise OriginalWiringError(
            f"{asked.by} changes what the model computes, and nothing was rewired", way_out="please report this"
        )
    for module in _compiled(worker):
        _guard(type(module), asked)
    log.info("farskip, rank %s: %s (asked by %s)", getattr(worker, "rank", 0), found["said"], asked.by)


def _why(worker: Any) -> str:
    modules = _compiled(worker)
    if not modules:
        return "vLLM compiles no part of its class"
    if all(module.do_not_compile for module in modules):
        return f"vLLM does not compile {type(modules[0]).__name__} in this configuration"
    if any(one["outcome"] == str(Outcome.NO_STACK) for one in ran):
        return "no graph of it that ran has a residual stack"
    return "none of its compiled code has run while it was warmed up (VLLM_CPU_CI_ENV skips that)"


def _compiled(worker: Any) -> list[Any]:
    """The modules of a worker's model that vLLM may compile."""
    model = worker.model_runner.get_model()
    return [module for module in model.modules() if hasattr(module, "do_not_compile")]


def _guard(cls: Any, asked: Asked) -> None:
    """Let instances of `cls` raise where vLLM asks them to skip their compiled code for one step."""
    if cls.__dict__.get(GUARDED):
        return
    plain = cls.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm.forward_context import get_forward_context, is_forward_context_available

        if is_forward_context_available() and get_forward_context().skip_compiled:
            raise OriginalWiringError(
                f"vLLM is about to run a step of {cls.__name__} uncompiled, and {asked.by} asks for a rewired model",
                way_out="no inputs for which vLLM skips compiled code",
            )
        return plain(self, *args, **kwargs)

    cls.__call__ = call
    setattr(cls, GUARDED, True)
