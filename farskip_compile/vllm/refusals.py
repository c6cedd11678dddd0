# SPDX-License-Identifier: Apache-2.0
"""What vLLM can't serve rewired, or what nobody has tried: said by name, before a worker starts.

Contract: `refuse_unsupported` is given a configuration that asks for rewiring, and raises for the first row of `RULES`
that holds. It reads the configuration alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from farskip_compile.errors import ConfigError, FarSkipError, OriginalWiringError, ParallelismError
from farskip_compile.vllm.asked import Asked

VERSIONS = ("0.31", "0.32")
"""Minor versions of vLLM that this was run on."""
EAGER = "without enforce_eager, --enforce-eager or -O0. Compiled are the modes 1, 2 and 3"
SECOND_MODEL = ("draft_model", "medusa", "mlp_speculator", "eagle", "eagle3", "mtp", "dflash", "dspark")
"""Methods of speculation that run a second model, or a head of the first one, after vLLM's own names."""
TRIED = ("ngram",)
"""Methods of speculation that were tried: they guess tokens from the prompt, and compile nothing of their own."""


def refuse_unsupported(vllm_config: Any, asked: Asked) -> None:
    """See the module's contract.

    Raises:
        FarSkipError: it can't be served rewired.
    """
    for holds, error, reason, way_out in RULES:
        if holds(vllm_config, asked):
            raise error(f"{asked.by} asks for a rewired model, and {reason(vllm_config)}", way_out=way_out)


def version() -> str:
    """The minor version of vLLM: `0.32`."""
    import vllm

    return ".".join(vllm.__version__.split("+")[0].split(".")[:2])


def _is_eager(config: Any, _: Asked) -> bool:
    return config.model_config.enforce_eager or not config.compilation_config.mode


def _has_lora_on_a_cpu(config: Any, _: Asked) -> bool:
    return config.lora_config is not None and str(config.device_config.device_type) == "cpu"


def _speculates(config: Any, _: Asked) -> bool:
    return config.speculative_config is not None and config.speculative_config.method not in TRIED


def _why_not_speculate(config: Any) -> str:
    method = config.speculative_config.method
    if method in SECOND_MODEL or method.endswith("_mtp"):
        return f"speculation by {method!r} compiles a second model, which was not tried"
    return f"speculation by {method!r} was not tried"


def _dispatches_inside(config: Any, asked: Asked) -> bool:
    parallel = config.parallel_config
    return asked.options.overlap and parallel.enable_expert_parallel and parallel.data_parallel_size > 1


RefusalRule = tuple[Callable[[Any, Asked], object], type[FarSkipError], Callable[[Any], str], str]
RULES: tuple[RefusalRule, ...] = (
    (
        lambda config, asked: version() not in VERSIONS,
        ConfigError,
        lambda config: f"this is vLLM {version()}, on which it was not tried; it was on {' and '.join(VERSIONS)}",
        "install one of these",
    ),
    (
        _has_lora_on_a_cpu,
        OriginalWiringError,
        lambda config: "on a CPU vLLM compiles no model that is served with LoRA: it would run in its original wiring",
        "merge the adapter into the weights, and serve these without LoRA",
    ),
    (
        _is_eager,
        OriginalWiringError,
        lambda config: "vLLM is told to compile nothing, so that the model would run in its original wiring",
        EAGER,
    ),
    (
        lambda config, asked: config.parallel_config.pipeline_parallel_size > 1,
        ParallelismError,
        lambda config: (
            f"pipeline_parallel_size is {config.parallel_config.pipeline_parallel_size}: a stage is a part of the stack"
        ),
        "pipeline_parallel_size=1, and tensor parallelism instead",
    ),
    (
        lambda config, asked: config.parallel_config.use_sequence_parallel_moe,
        ParallelismError,
        lambda config: "its experts run sequence-parallel, each rank on its part of the tokens",
        "data_parallel_size=1, or an all2all_backend without sequence parallelism",
    ),
    (
        _dispatches_inside,
        ParallelismError,
        lambda config: (
            "overlap is asked for, but with expert parallelism and data-parallel attention tokens are dispatched and "
            "combined inside of the experts' operator, where nothing can be moved"
        ),
        "leave overlap out, which rewires all the same; or tensor parallelism without data parallelism",
    ),
    (
        lambda config, asked: asked.options.overlap and config.compilation_config.use_inductor_graph_partition,
        ConfigError,
        lambda config: "overlap is asked for with use_inductor_graph_partition, which orders the graph after us",
        "use_inductor_graph_partition=False",
    ),
    (
        lambda config, asked: config.parallel_config.enable_dbo,
        ConfigError,
        lambda config: "dual-batch overlap runs it in two threads, which was not tried",
        "leave --enable-dbo out",
    ),
    (
        _speculates,
        ConfigError,
        _why_not_speculate,
        f"speculation by {', '.join(TRIED)}, or leave --speculative-config out",
    ),
)
"""(whether it holds, error, reason, way out)."""
