# SPDX-License-Identifier: Apache-2.0
"""Small `transformers` models, and a loop that trains one of them next to its eager FarSkip form.

In:    a model, the function that runs it (compiled), the same model before that, and batches of token ids.
Out:   how far the losses, gradients and parameters of the two are apart.
Never: uses anything of the compiler but its backend; the oracle runs the model's own forward in eager mode.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from farskip_compile.models.generic_form import GenericFarSkipForm
from farskip_compile.models.transformers_form import tiny_deepseek_v3
from tests.compare import relative_difference

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "use_cache": False,
    "pad_token_id": 0,
}


def deepseek_v3() -> Any:
    """Shared experts beside the routed ones; the first layer is dense."""
    return tiny_deepseek_v3(layers=3)


def qwen2_moe(**config: Any) -> Any:
    """A gated shared expert, biases in the attention."""
    config = SMALL | {"num_experts": 8, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16} | config
    return transformers.Qwen2MoeForCausalLM(transformers.Qwen2MoeConfig(decoder_sparse_step=1, **config))


def mixtral(**config: Any) -> Any:
    """No shared experts."""
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**(SMALL | config), num_local_experts=8))


CHUNK = 8


def granite_hybrid(**config: Any) -> Any:
    """Mamba-2 layers, which work on chunks of tokens, around one of attention; residual multipliers."""
    mamba = {
        "shared_intermediate_size": 16,
        "num_local_experts": 8,
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "attention", "mamba"],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_chunk_size": CHUNK,
        "residual_multiplier": 0.5,
    }
    return transformers.GraniteMoeHybridForCausalLM(transformers.GraniteMoeHybridConfig(**(SMALL | mamba | config)))


def in_training(build: Callable[..., Any], dtype: torch.dtype = torch.float64, **config: Any) -> Any:
    """A seeded model in train mode; without dropout and router jitter, which are off by default."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(**config)
    model.set_experts_implementation("batched_mm")  # takes float64
    return model.to(dtype).train()


def batches(lengths: Sequence[int] = (10,) * 5, micro_batches: int = 1) -> list[list[torch.Tensor]]:
    """For each step, token ids of some micro-batches. Id 0 is padding, and does not occur."""
    generator = torch.Generator().manual_seed(1)
    return [[torch.randint(1, 128, (2, n), generator=generator) for _ in range(micro_batches)] for n in lengths]


def checkpointed(model: Any, **kwargs: Any) -> None:
    """By the model's own switch, under its name before or after transformers renamed it.

    The switch also asks for gradients of the embeddings, which only reentrant checkpoints need.
    """
    kwargs = {"use_reentrant": False, **kwargs}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    model.disable_input_require_grads()


def compiled(model: Any, *, dynamic: bool | None = None, **options: Any) -> Callable[..., Any]:
    options = {"inner": "eager", **options}
    return torch.compile(model, backend="farskip", fullgraph=True, dynamic=dynamic, options=options)


adamw = functools.partial(torch.optim.AdamW, lr=1e-3)
sgd = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)


@dataclass
class Apart:
    """Relative differences between the compiled model and its oracles, the largest of all steps."""

    loss: float = 0.0
    """From equal parameters."""
    gradients: float = 0.0
    """From equal parameters, of the parameter where they are furthest apart."""
    whole_gradient: float = 0.0
    """From equal parameters, all gradients as one vector (Euclidean norm): still small if rounding sends a token to
    another expert, although the gradient of that expert is another one."""
    free_loss: float = 0.0
    """Of runs that part at the first step."""
    free_parameters: float = 0.0
    """After the last step of such runs."""
    outputs: list[Any] = field(default_factory=list, repr=False)
    """Of the compiled model."""


def train(
    model: Any,
    function: Callable[..., Any],
    oracle: Any,
    steps: Sequence[Sequence[torch.Tensor]],
    optimizer: Callable[..., torch.optim.Optimizer] = adamw,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Apart:
    """Train `model` by calling `function`, and copies of `oracle` (the model before compilation) beside it."""
    free, follower = copy.deepcopy(oracle), copy.deepcopy(oracle)
    models = (model, follower, free)
    calls = (function, GenericFarSkipForm(follower), GenericFarSkipForm(free))
    optimizers = [optimizer(one.parameters()) for one in (model, free)]
    apart = Apart()
    for micro_batches in steps:
        follower.load_state_dict(model.state_dict())
        for one in models:
            one.zero_grad()
        for ids in micro_batches:
            losses = []
            for call in calls:
                with context():
                    output = call(input_ids=ids, labels=ids)
                (output.loss / len(micro_batches)).backward()
                losses.append(output.loss.detach())
                if call is function:
                    apart.outputs.append(output)
            apart.loss = max(apart.loss, relative_difference(losses[0], losses[1]))
            apart.free_loss = max(apart.free_loss, relative_difference(losses[0], losses[2]))
        apart.gradients = max(apart.gradients, largest_difference(gradients(model), gradients(follower)))
        apart.whole_gradient = max(apart.whole_gradient, distance(gradients(model), gradients(follower)))
        for one in optimizers:
            one.step()
    apart.free_parameters = largest_difference(dict(model.named_parameters()), dict(free.named_parameters()))
    for name, parameter in oracle.named_parameters():
        assert not torch.equal(parameter, model.get_parameter(name)), f"{name} was not trained"
    with context(), torch.no_grad():  # and the comparison is not that of a model with itself
        assert not torch.equal(oracle(input_ids=steps[0][0], labels=steps[0][0]).loss, apart.outputs[0].loss)
    return apart


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(relative_difference(left[name].detach(), right[name].detach()) for name in left)


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Of two vectors, relative to the second."""
    one, other = (torch.cat([value.flatten().double() for value in side.values()]) for side in (left, right))
    return ((one - other).norm() / other.norm()).item()
