# SPDX-License-Identifier: Apache-2.0
"""Tiny models of transformers on ranks: saved as a checkpoint, loaded as users load them, and what they must equal.

The oracle runs in each rank, on the whole model from the same checkpoint: no parallelism and no compiler is in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from farskip_compile.models.generic_form import GenericFarSkipForm
from farskip_compile.tools.prepare import register_expert_parallel
from tests.compare import relative_difference, run_with_gradients
from tests.compile_each import compile_each

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "initializer_range": 0.1,
    "use_cache": False,
    "pad_token_id": 0,
}
IDS = torch.randint(0, 64, (2, 7), generator=torch.Generator().manual_seed(0))
Run = tuple[torch.Tensor, dict[str, torch.Tensor]]


def build(family: str, layers: int) -> Any:
    """A random model; the first layer of DeepSeek-V3 is dense."""
    import transformers

    settings = {**COMMON, "num_hidden_layers": layers}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "qwen2_moe":
            config = transformers.Qwen2MoeConfig(**settings, num_experts=8, shared_expert_intermediate_size=16)
            return transformers.Qwen2MoeForCausalLM(config)
        if family == "qwen3_moe":
            config = transformers.Qwen3MoeConfig(**settings, num_experts=8, head_dim=8)
            return transformers.Qwen3MoeForCausalLM(config)
        config = transformers.DeepseekV3Config(
            **settings, n_routed_experts=8, n_shared_experts=1, n_group=4, topk_group=2, first_k_dense_replace=1,
            q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
        )  # fmt: skip
        return transformers.DeepseekV3ForCausalLM(config)


def save(family: str, layers: int, folder: Path) -> str:
    """A checkpoint of a new model; returns its path."""
    path = str(folder / f"{family}-{layers}")
    build(family, layers).save_pretrained(path)
    return path


def load(path: str, rank: int, world_size: int, mode: str = "", dtype: torch.dtype = torch.float64) -> Any:
    """The checkpoint on this rank.

    Args:
        path: from `save`.
        rank: of this process.
        world_size: number of ranks.
        mode: "" whole; "tp": tensor parallel; else the name of an expert-parallel implementation, on top of it.
        dtype: of the parameters.
    """
    import transformers
    from transformers.distributed.configuration_utils import DistributedConfig

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))  # as torchrun sets them
    register_expert_parallel()
    parallel: dict[str, Any] = {}
    if mode == "tp":
        parallel["tp_plan"] = "auto"
    elif mode:
        config = DistributedConfig(tp_size=world_size, ep_size=world_size, ep_implementation=mode)
        parallel["distributed_config"] = config
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        experts_implementation="batched_mm",  # takes float64
        **parallel,
    )
    expert = next(p for name, p in model.named_parameters() if "experts.down_proj" in name)
    assert isinstance(expert, DTensor) == bool(mode)
    return model


def compiled(model: nn.Module, backend: str = "farskip", **options: Any) -> Callable[..., Any]:
    """A function from token ids to logits, from a fresh compiler."""
    torch.compiler.reset()
    if backend == "farskip":
        options = {"inner": "eager", **options}
    function = torch.compile(model, backend=backend, fullgraph=True, options=options or None)
    return lambda ids: function(ids).logits


def compiled_each(model: nn.Module, *options: dict[str, Any] | None) -> list[Callable[..., Any]]:
    """The same for each of `options`, from one capture; None: the plain graph."""
    torch.compiler.reset()
    each = compile_each(model, [None if one is None else {"inner": "eager", **one} for one in options])
    return [lambda ids, function=function: function(ids).logits for function in each]


def oracle(whole: nn.Module, connectivity: Any = "full") -> Callable[..., Any]:
    """The same on the whole model, in eager mode."""
    form = GenericFarSkipForm(whole, connectivity)
    return lambda ids: form(input_ids=ids).logits


def local(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This rank's shards."""
    return {name: g.to_local() if isinstance(g, DTensor) else g for name, g in gradients.items()}


def difference(one: Run, other: Run) -> tuple[float, float]:
    """Largest difference of outputs and of whole gradients, relative to the largest entry."""
    assert one[1].keys() == other[1].keys()
    gradients = [
        relative_difference(*(g.full_tensor() if isinstance(g, DTensor) else g for g in (one[1][name], other[1][name])))
        for name in one[1]
    ]
    return relative_difference(one[0], other[0]), max(gradients)


def equal(one: Run, other: Run) -> bool:
    """Outputs and this rank's shards of gradients, bit for bit."""
    left, right = local(one[1]), local(other[1])
    return (
        left.keys() == right.keys()
        and torch.equal(one[0], other[0])
        and all(torch.equal(left[name], right[name]) for name in left)
    )


__all__ = [
    "IDS", "Run", "build", "compiled", "compiled_each", "difference", "equal", "load", "oracle", "run_with_gradients",
    "save",
]  # fmt: skip
