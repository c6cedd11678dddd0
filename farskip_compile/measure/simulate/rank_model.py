# SPDX-License-Identifier: Apache-2.0
"""The model of one rank, at full size and without memory: code of transformers on fake tensors, cut and wired.

In:    a `Scenario`, within `farskip_compile.testing.fake_ranks` of its ranks.
Out:   the module to capture, its example inputs, and the rows of the fullest rank over the mean.
Never: allocates a weight, downloads anything, or patches transformers: attention and exchange are plugged in by its own
       registries, the rest by attributes of this one model. Depends on a clock or a rank: the popular expert is drawn
       from a fixed seed.

Experts are placed on the ranks in the order of their numbers in checkpoints. By Zipf's law the expert of popularity e
is chosen in proportion to 1 / e^skew. Popularity has nothing to do with the numbering, so it is shuffled. A token
chooses an expert at most once. Recorded loads stay in their order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from farskip_compile._compat.fakes import FakeTensorMode
from farskip_compile.base.choices import Phase
from farskip_compile.errors import ConfigError
from farskip_compile.measure.simulate.attention import give_caches, register_attention
from farskip_compile.measure.simulate.cuts import cut_matrices
from farskip_compile.measure.simulate.experts import give_usual_interface, spread_experts
from farskip_compile.measure.simulate.scenario import MOST_EXPERTS, Scenario
from farskip_compile.models.router import shares
from farskip_compile.tools.prepare import prepare
from farskip_compile.tools.zoo.families import counts_experts

SEED = 0


@dataclass(frozen=True)
class RankModel:
    """The module and the inputs of one rank in one step."""

    module: nn.Module
    kwargs: dict[str, Any]
    """Example inputs, by name."""
    mode: FakeTensorMode
    """The mode of its tensors, within which everything is done with the model."""
    imbalance: float
    """Rows of the fullest rank over the mean."""
    parameters: int
    """The number of parameters on this rank."""


class _Loss(nn.Module):
    """A step of training: the mean loss of the next tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **kwargs: Any) -> torch.Tensor:
        """Return the loss, a scalar."""
        loss: torch.Tensor = self.model(**kwargs).loss
        return loss


def rank_model(scenario: Scenario, pieces: int = 1) -> RankModel:
    """Return the model of the first rank, with each exchange in so many `pieces`.

    Raises:
        ConfigError: transformers can't build the model, or it can't be cut as the scenario says.
    """
    config = scenario.architecture.config(scenario.layers)
    rows = imbalance(_loads(scenario, config), scenario.ep)
    tp_mesh = init_device_mesh("cpu", (scenario.groups, scenario.tp), mesh_dim_names=("dp", "tp"))["tp"]
    copies = scenario.ranks // scenario.ep
    ep_mesh = init_device_mesh("cpu", (copies, scenario.ep), mesh_dim_names=("copies", "ep"))["ep"]
    mode = FakeTensorMode()
    with mode:
        model = _build(scenario, config)
        model.train(scenario.trains)
        give_usual_interface(model)
        if scenario.tp > 1:
            plan = {**model.tp_plan, **{f"model.{key}": style for key, style in scenario.architecture.cuts.items()}}
            cut_matrices(model, plan, tp_mesh.get_group(), reduce_blocks=scenario.exchanges == "all-reduce")
        spread_experts(model, ep_mesh, tp_mesh, scenario.exchanges, rows, pieces)
        prepare(model)
        kwargs = _inputs(model, scenario)
    count = sum(parameter.numel() for parameter in model.parameters())
    return RankModel(_Loss(model) if scenario.trains else model, kwargs, mode, rows, count)


def _build(scenario: Scenario, config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    options = {"dtype": torch.bfloat16, "attn_implementation": register_attention(), "trust_remote_code": False}
    try:
        return AutoModelForCausalLM.from_config(config, **options)
    except Exception as error:  # any: the configuration may be of others, and say anything
        raise ConfigError(
            f"transformers can't build {scenario.architecture.name}: {type(error).__name__}: {error}",
            way_out="a configuration of a causal language model that this transformers knows",
        ) from error


def _inputs(model: nn.Module, scenario: Scenario) -> dict[str, Any]:
    sequences, decodes = scenario.batch // scenario.groups, scenario.phase is Phase.DECODE
    tokens = torch.zeros(sequences, 1 if decodes else scenario.prompt, dtype=torch.int64)
    kwargs: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
    if decodes:
        give_caches(model, sequences, scenario.prompt)
        kwargs["position_ids"] = torch.zeros_like(tokens)
    if scenario.trains:
        kwargs["labels"] = torch.zeros_like(tokens)
    else:
        kwargs["logits_to_keep"] = 1
    return kwargs


def _loads(scenario: Scenario, config: Any) -> list[float]:
    """Return how often each expert is chosen."""
    counts = [value for key, value in config.to_dict().items() if counts_experts(key) and isinstance(value, int)]
    if not counts:
        raise ConfigError(f"{scenario.architecture.name} has no routed experts", way_out="a Mixture-of-Experts model")
    experts = max(counts)
    if not 1 <= experts <= MOST_EXPERTS:
        raise ConfigError(f"{scenario.architecture.name} has {experts} experts", way_out=f"1 to {MOST_EXPERTS}")
    if scenario.loads is not None:
        if len(scenario.loads) != experts:
            raise ConfigError(f"{len(scenario.loads)} loads are given, but the model has {experts} experts")
        return list(scenario.loads)
    return zipf_loads(experts, config.num_experts_per_tok, scenario.skew)


def zipf_loads(experts: int, top_k: int, skew: float) -> list[float]:
    """Return how often each expert is chosen, by its number; the sum is `top_k`."""
    loads = shares(experts, top_k, skew)
    random.Random(SEED).shuffle(loads)
    return loads


def imbalance(loads: Sequence[float], ranks: int) -> float:
    """Return the rows of the fullest of `ranks` ranks over the mean, from how often each expert is chosen.

    Raises:
        ConfigError: the experts can't be divided evenly.
    """
    if len(loads) % ranks:
        raise ConfigError(f"{len(loads)} experts can't be divided among {ranks} ranks")
    held = len(loads) // ranks
    by_rank = [sum(loads[first : first + held]) for first in range(0, len(loads), held)]
    return max(by_rank) * ranks / sum(by_rank)
