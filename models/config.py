# SPDX-License-Identifier: Apache-2.0
"""The architecture of a model (`ModelConfig`) and how it is spread over ranks (`ParallelConfig`).

Contract: both are immutable, and an impossible combination is an error on construction, not later in a forward pass.
Nothing here holds weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch.distributed as dist

from farskip_compile.errors import ConfigError, ParallelismError

LayerKind = Literal["dense", "moe"]
RouterKind = Literal["softmax", "sigmoid_groups", "sigmoid_top1"]
EpMode = Literal["padded", "dropless", "allgather"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of a decoder: enough options to express DeepSeek-V3, Qwen3-MoE, Llama-4 or Mixtral."""

    vocab_size: int = 128
    """Number of token ids."""
    hidden_size: int = 64
    """Width D of the residual stream."""
    layers: tuple[LayerKind, ...] = ("moe", "moe", "moe", "moe")
    """The feed-forward of each decoder layer, from first to last."""
    norm: Literal["rms", "layer"] = "rms"
    """Root-mean-square norm, or layer norm with a bias."""
    norm_epsilon: float = 1e-6
    """Added to the variance inside every norm."""
    residual_scale: float = 1.0
    """Multiplies every branch output before it is added to the stream (Granite). 1.0: no such node."""
    parallel_block: bool = False
    """Attention and feed-forward both read one shared norm of the stream (Cohere)."""
    dropout: float = 0.0
    """Dropout on the output of each attention, MLP, shared expert and of the routed experts, in training mode."""

    attention: Literal["gqa", "mla"] = "gqa"
    """Grouped-query attention, or DeepSeek's multi-head latent attention."""
    heads: int = 4
    """Query heads."""
    kv_heads: int = 2
    """Key/value heads; grouped-query attention only."""
    head_dim: int = 16
    """Width of one head; grouped-query attention only."""
    qk_norm: bool = False
    """Normalise each query and key head before the rotation (Qwen3); grouped-query attention only."""
    query_rank: int | None = 32
    """Width of the compressed queries; None: queries are not compressed. Latent attention only."""
    kv_rank: int = 32
    """Width of the compressed keys and values; latent attention only."""
    nope_head_dim: int = 16
    """Part of a query/key head without positions; latent attention only."""
    rope_head_dim: int = 8
    """Part of a query/key head that is rotated by its position; latent attention only."""
    value_head_dim: int = 16
    """Width of a value head; latent attention only."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""

    intermediate_size: int = 128
    """Inner width of a dense layer's MLP."""
    moe_intermediate_size: int = 32
    """Inner width of one expert, routed or shared."""
    experts: int = 8
    """Routed experts of an MoE layer."""
    top_k: int = 2
    """Experts that each token is sent to."""
    shared_experts: int = 0
    """Experts that every token passes: separate modules, added one after another."""
    router: RouterKind = "softmax"
    """The scores and the choice of experts; see `router.py`."""
    renormalise_weights: bool = True
    """Divide the weights of the chosen experts by their sum."""
    router_groups: int = 1
    """Groups that the experts are divided into; `sigmoid_groups` only."""
    router_top_groups: int = 1
    """Groups that a token may choose experts from; `sigmoid_groups` only."""
    routed_scaling_factor: float = 1.0
    """Multiplies the weights of the chosen experts; `sigmoid_groups` only."""
    router_skew: float = 0.0
    """Skew of the experts' load: expert e - 1 is chosen about in proportion to 1 / e^router_skew, by a bias on scores
    (`router.py`). 0.0: no such node; the weights decide the load."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "heads", "kv_heads", "intermediate_size", "experts", "top_k"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.layers or not set(self.layers) <= {"dense", "moe"}:
            raise ConfigError(f"layers must name 'dense' or 'moe' for every layer, not {self.layers!r}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {allowed}, not {getattr(self, name)!r}")
        if self.attention == "gqa" and self.heads % self.kv_heads:
            raise ConfigError(f"{self.heads} heads can't share {self.kv_heads} key/value heads evenly")
        rotated = self.head_dim if self.attention == "gqa" else self.rope_head_dim
        if rotated % 2:
            raise ConfigError(f"a rotated head needs an even width, not {rotated}")
        if self.top_k > self.experts:
            raise ConfigError(f"top_k = {self.top_k} is more than the {self.experts} experts")
        if self.shared_experts not in (0, 1, 2):
            raise ConfigError(f"shared_experts must be 0, 1 or 2, not {self.shared_experts}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), not {self.dropout}")
        if not 0.0 <= self.router_skew < float("inf"):
            raise ConfigError(f"router_skew must be 0 or more, not {self.router_skew}", way_out="1.0 is Zipf's law")
        if self.router == "sigmoid_groups":
            self._check_router_groups()

    def _check_router_groups(self) -> None:
        if self.experts % self.router_groups or self.experts // self.router_groups < 2:
            raise ConfigError(
                f"{self.experts} experts don't form {self.router_groups} equal groups of two or more",
                way_out="choose router_groups so that every group holds the same number of experts, at least two",
            )
        reachable = self.router_top_groups * (self.experts // self.router_groups)
        if not 1 <= self.router_top_groups <= self.router_groups or self.top_k > reachable:
            raise ConfigError(
                f"top_k = {self.top_k} experts can't be chosen from {self.router_top_groups} of "
                f"{self.router_groups} groups"
            )


_CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("rms", "layer"),
    "attention": ("gqa", "mla"),
    "router": ("softmax", "sigmoid_groups", "sigmoid_top1"),
}


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """The ranks that share the work. The default is one process that holds everything."""

    ep_group: dist.ProcessGroup | None = None
    """Expert parallelism: each rank holds a slice of the experts and its own tokens. So attention is data-parallel,
    with whole weights on each rank."""
    tp_group: dist.ProcessGroup | None = None
    """Tensor parallelism: each rank holds a slice of every head and inner width, and has the same tokens."""
    ep_mode: EpMode = "padded"
    """The way of tokens to their experts.

    "padded", "dropless": all-to-all to the expert's rank and back, with room per expert or with splits that are counted
    first (`farskip_compile.comm`). "allgather": every rank gathers the tokens of all, applies its own experts, and a
    reduce-scatter returns the sums; equally many tokens on each rank.
    """
    capacity_factor: float | None = None
    """Room per expert, as a multiple of a balanced load of one rank's tokens (all ranks' where these are gathered);
    tokens beyond it are dropped. None: room for every token."""
    sequence_parallel: bool = False
    """Between sub-blocks, each rank of `tp_group` holds only its share of the tokens; see `tensor_parallel.py`."""

    def __post_init__(self) -> None:
        if self.ep_mode not in get_args(EpMode):
            raise ConfigError(f"ep_mode must be one of {get_args(EpMode)}, not {self.ep_mode!r}")
        if self.sequence_parallel and self.tp_group is None:
            raise ConfigError("sequence_parallel needs tensor parallelism", way_out="give tp_group as well")
        if self.ep_group is not None and self.tp_group is not None:
            both = {*dist.get_process_group_ranks(self.ep_group)} & {*dist.get_process_group_ranks(self.tp_group)}
            if len(both) > 1:
                raise ParallelismError(
                    f"ranks {sorted(both)} share both experts and matrices, so a slice of an expert would be cut twice",
                    way_out="lay the groups out as the rows and columns of one mesh",
                )
        if self.capacity_factor is not None and self.capacity_factor <= 0:
            raise ConfigError(f"capacity_factor must be positive, not {self.capacity_factor}")
        if self.capacity_factor is not None and self.ep_mode == "dropless":
            raise ConfigError(
                "a dropless exchange has no capacity",
                way_out="leave capacity_factor at None, or use ep_mode='padded'",
            )

    @property
    def ep_size(self) -> int:
        """Number of ranks that share the experts."""
        return 1 if self.ep_group is None else self.ep_group.size()

    @property
    def tp_size(self) -> int:
        """Number of ranks that share every matrix."""
        return 1 if self.tp_group is None else self.tp_group.size()


def shard_size(total: int, ranks: int, what: str) -> int:
    """Return the share of one rank, or raise a `ParallelismError` that says what can't be divided."""
    if total % ranks:
        raise ParallelismError(
            f"{total} {what} can't be divided among {ranks} ranks",
            way_out=f"use a group whose size divides {total}",
        )
    return total // ranks
