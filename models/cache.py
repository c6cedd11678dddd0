# SPDX-License-Identifier: Apache-2.0
"""Keys and values of the tokens seen so far, in memory of fixed size, for decode steps.

In:    `KeyValueCache` gets the size of the model's keys and values, `begin` the shape of the ids of a call, and
       `CacheStep.append` the keys and values of one layer's attention for these tokens.
Out:   all keys and values of that layer, and the mask that hides unwritten ones.
Never: grows, synchronises with the device, or keeps a gradient.

    cache = decoder.new_cache(batch=8, length=1024)
    with torch.no_grad():
        logits = decoder(prompts, cache=cache)        # prefill, [B, T, vocabulary]
        logits = decoder(next_ids, cache=cache)       # decode step, ids [B, 1]

Algorithm. `position`, a tensor, counts the tokens that are cached. A call with T tokens
    1. gives them the positions `position` to `position + T - 1`, for the rotation of queries and keys,
    2. lets every layer write its keys and values there, in place, and attend to all places up to the token's own,
    3. moves `position` on by T.
The shapes are those of the whole cache in every step, so that a compiled or recorded step fits the next one as well.
In the FarSkip form the keys and values are projected from norm(n) instead of norm(x): a cache that one wiring has
filled is of no use to the other (arXiv 2511.11505, section 3).

Latent attention caches its keys and values per head, expanded, and not the narrow latent that they come from.
"""

from __future__ import annotations

import torch

from farskip_compile.errors import ConfigError, refuse
from farskip_compile.models.config import ModelConfig, ParallelConfig, shard_size


class KeyValueCache:
    """Keys and values of this rank's heads, for every layer of a decoder.

    Args:
        config: of the decoder.
        batch: sequences B, all of which are equally long.
        length: tokens per sequence L that there is room for.
        parallel: of the decoder; tensor-parallel ranks cache their own heads only.
        dtype: of keys and values, that of the decoder's weights.
        device: where they are kept.

    Raises:
        ConfigError: no room for any token.
        ParallelismError: the heads can't be divided among the tensor-parallel ranks.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch: int,
        length: int,
        parallel: ParallelConfig | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch < 1 or length < 1:
            raise ConfigError(
                f"a cache for {batch} sequences of {length} tokens holds nothing", way_out="both at least 1"
            )
        ranks = 1 if parallel is None else parallel.tp_size
        if config.attention == "gqa":
            heads, key_width, value_width = config.kv_heads, config.head_dim, config.head_dim
        else:
            heads, key_width = config.heads, config.nope_head_dim + config.rope_head_dim
            value_width = config.value_head_dim
        heads = shard_size(heads, ranks, "cached heads")
        layers = range(len(config.layers))
        self.batch = batch
        self.length = length
        self.keys = [torch.zeros(batch, heads, length, key_width, dtype=dtype, device=device) for _ in layers]
        """Per layer [B, KV heads of this rank, L, width of a key], already rotated."""
        self.values = [torch.zeros(batch, heads, length, value_width, dtype=dtype, device=device) for _ in layers]
        """Per layer [B, KV heads of this rank, L, width of a value]."""
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        """Number of cached tokens, []. Set it to pretend that this many tokens came before."""

    def begin(self, batch: int, length: int) -> CacheStep:
        """Places for the tokens of a call with ids [batch, length].

        Raises:
            ConfigError: the batch differs from the cache's, or there are more tokens than it has room for. Whether the
                places are still free depends on `position`, on the device, and is not checked: writing past the end is
                an error of the device's index operation.
        """
        if batch != self.batch:
            refuse(ConfigError, "the batch is not the one that the cache was made for", way_out="decoder.new_cache")
        if length > self.length:
            refuse(ConfigError, "a call has more tokens than the cache has room for", way_out="a longer cache")
        positions = self.position + torch.arange(length, device=self.position.device)  # [T]
        places = torch.arange(self.length, device=self.position.device)  # [L]
        return CacheStep(self, positions, places <= positions.unsqueeze(-1))

    def advance(self, length: int) -> None:
        """Count the `length` tokens of a completed call."""
        self.position.add_(length)

    def reset(self) -> None:
        """Forget all tokens; the memory is kept, its contents masked."""
        self.position.zero_()


class CacheStep:
    """One call's view of a cache."""

    def __init__(self, cache: KeyValueCache, positions: torch.Tensor, mask: torch.Tensor) -> None:
        self.cache = cache
        self.positions = positions
        """The positions of the call's tokens, [T]."""
        self.mask = mask
        """True for the places that each token attends to, [T, L]."""

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's keys [B, KV, T, .] and values [B, KV, T, .]; all of that layer, [B, KV, L, .] each.

        Raises:
            ConfigError: a gradient would be needed, which overwritten memory can't provide.
        """
        if key.requires_grad or value.requires_grad:
            refuse(ConfigError, "a cache keeps no gradients", way_out="run the model under torch.no_grad()")
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys.index_copy_(2, self.positions, key)
        values.index_copy_(2, self.positions, value)
        return keys, values
