# SPDX-License-Identifier: Apache-2.0
"""The plain decoder: token embedding, layers, final norm, language-model head.

Contract: the residual stream is a plain sum. Every layer reads all of it, which is what the compiler changes:
    x = x + attention(norm(x))
    x = x + feed_forward(norm(x))
A rank's stream x is [B, T, D], or under sequence parallelism [B * T / ranks, D]; then `gather` follows each norm.
With a cache (see `cache.py`) the ids continue the sequences in it, and the logits are of these tokens alone.
"""

from __future__ import annotations

import torch
from torch import nn

from farskip_compile.models.attention import make_attention
from farskip_compile.models.cache import CacheStep, KeyValueCache
from farskip_compile.models.config import LayerKind, ModelConfig, ParallelConfig
from farskip_compile.models.mlp import MLP
from farskip_compile.models.moe import MoE
from farskip_compile.models.norm import make_norm
from farskip_compile.models.rope import Rope, rope_tables
from farskip_compile.models.sharding import initialise
from farskip_compile.models.tensor_parallel import gather_stream, own_tokens


class DecoderLayer(nn.Module):
    """Attention and a feed-forward, each after a norm; or, in a parallel block, both after one shared norm."""

    def __init__(self, kind: LayerKind, config: ModelConfig, parallel: ParallelConfig, index: int) -> None:
        super().__init__()
        self.parallel = parallel
        self.residual_scale = config.residual_scale
        self.attention_norm = make_norm(config)
        self.attention = make_attention(config, parallel, index)
        self.feed_forward_norm = None if config.parallel_block else make_norm(config)
        self.feed_forward: MLP | MoE
        if kind == "moe":
            self.feed_forward = MoE(config, parallel)
        else:
            self.feed_forward = MLP(config, config.intermediate_size, parallel)

    @property
    def norm_before_feed_forward(self) -> nn.Module:
        """A parallel block has one norm for both readers."""
        return self.attention_norm if self.feed_forward_norm is None else self.feed_forward_norm

    def scaled(self, branch: torch.Tensor) -> torch.Tensor:
        """Return the output of a branch as it is added to the stream."""
        return branch if self.residual_scale == 1.0 else branch * self.residual_scale

    def gather(self, h: torch.Tensor, rope: Rope) -> torch.Tensor:
        """Return the normed stream of all tokens, [B, T, D], from that of this rank."""
        return gather_stream(h, rope[0].shape[0], self.parallel)

    def forward(self, x: torch.Tensor, rope: Rope) -> torch.Tensor:
        """Return this rank's stream after the layer."""
        h = self.gather(self.attention_norm(x), rope)
        x = x + self.scaled(self.attention(h, rope))
        if self.feed_forward_norm is not None:  # otherwise the feed-forward reads the attention's input
            h = self.gather(self.feed_forward_norm(x), rope)
        return x + self.scaled(self.feed_forward(h))


class Decoder(nn.Module):
    """Token ids [B, T] -> logits [B, T, vocabulary]."""

    def __init__(self, config: ModelConfig, parallel: ParallelConfig) -> None:
        super().__init__()
        self.config = config
        self.parallel = parallel
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(kind, config, parallel, index) for index, kind in enumerate(config.layers)
        )
        self.final_norm = make_norm(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [B, T] -> this rank's stream [B, T, D]; under sequence parallelism [B * T / ranks, D].

        Raises:
            ParallelismError: the tokens can't be divided among the sequence-parallel ranks.
        """
        return self.token_embedding(own_tokens(ids, self.parallel))

    def new_cache(self, batch: int, length: int) -> KeyValueCache:
        """Return an empty cache of `length` tokens for `batch` sequences of this rank, typed and placed like weights.

        Raises:
            ConfigError: no room for any token.
        """
        like = self.token_embedding.weight
        return KeyValueCache(
            self.config, batch=batch, length=length, parallel=self.parallel, dtype=like.dtype, device=like.device
        )

    def positions(self, x: torch.Tensor, ids: torch.Tensor, cache: KeyValueCache | None) -> Rope:
        """Return the positions of the tokens of `ids` [B, T], for the attentions; `x` is their stream.

        Raises:
            ConfigError: the cache is for another batch, or shorter than T.
        """
        batch, length = ids.shape
        return self.rope(x, length, None if cache is None else cache.begin(batch, length))

    def rope(self, x: torch.Tensor, length: int, past: CacheStep | None = None) -> Rope:
        """Rotary tables for `length` positions, after those of `past`, for a stream with the dtype of `x`."""
        config = self.config
        width = config.head_dim if config.attention == "gqa" else config.rope_head_dim
        return rope_tables(x, length, width, config.rope_theta, past)

    def head(self, x: torch.Tensor, length: int) -> torch.Tensor:
        """Return the logits [B, T, vocabulary] of all sequences of `length` tokens, from this rank's stream `x`."""
        return self.lm_head(gather_stream(self.final_norm(x), length, self.parallel))

    def forward(self, ids: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
        """Token ids [B, T] -> logits [B, T, vocabulary].

        Args:
            ids: of this rank's sequences.
            cache: what came before them, and where they are appended; None: nothing.

        Raises:
            ConfigError: the cache is for another batch, or shorter than T, or a gradient would be needed.
            ParallelismError: the tokens can't be divided among the sequence-parallel ranks.
        """
        x = self.embed(ids)
        rope = self.positions(x, ids, cache)
        for layer in self.layers:
            x = layer(x, rope)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.head(x, ids.shape[1])


def build_decoder(
    config: ModelConfig,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    parallel: ParallelConfig | None = None,
) -> Decoder:
    """Return a decoder with seeded weights, or this rank's slice of it.

    Args:
        config: its architecture.
        seed: of the weights; the same one gives each rank its slice of the same whole model.
        dtype: of all weights.
        device: of the weights.
        parallel: the ranks that share the model; None: this process has all of it.

    Raises:
        ParallelismError: experts, heads or widths can't be divided among the ranks.
    """
    model = Decoder(config, parallel or ParallelConfig())
    initialise(model.to(device=device, dtype=dtype), seed)
    return model
