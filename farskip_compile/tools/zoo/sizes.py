# SPDX-License-Identifier: Apache-2.0
"""Shrink the numbers of a configuration by the role that the name of a field states.

Contract: the name and the value of a field come in, and the values of all fields beside it; the value for a tiny model
goes out. Only the shapes of names decide, never a model. What has no rule keeps its value: no rule switches a part of a
model off, but experts, routed and shared, that a default leaves out are switched on.

Numbers that belong together stay consistent, because each role has one scale: all dimensions of heads are divided by
the same number, numbers of heads that are equal stay equal, expert groups divide the experts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from farskip_compile.tools.zoo.families import counts_experts

Fields = Mapping[str, Any]
_TOP_K = r"^(?!index).*(experts_per_tok|(^|_)top_?k($|_experts)|moe_k$)"
_SHARED_COUNT = r"(^|_)(n|num)_shared_experts?$"


@dataclass(frozen=True)
class TinySizes:
    """What a tiny model is made of."""

    layers: int = 4
    hidden: int = 64
    dense: int = 96
    """Width of dense blocks."""
    expert: int = 32
    """Width of one expert."""
    experts: int = 8
    top_k: int = 2
    heads: int = 4
    head_shrink: int = 8
    """What all dimensions of heads are divided by."""
    vocabulary: int = 128
    window: int = 8
    """Shorter than the ten tokens of the test input, so that a window hides something."""
    lora: int = 32
    small: int = 16
    fill: bool = False
    """Give numbers of heads and the like a value that the default leaves open, for code that needs one."""


SizeRule = Callable[[str, int, Fields, TinySizes], int]

_SWITCH = re.compile(r"^(is|use|enable|has|with|_|moe|block|blocks|layer|layers|experts)+$")
_MULTIPLIER = re.compile(r"multiplier|routed_scaling|router_scaling|route_scale|logits_scaling|(alpha|beta)_factor")
_NO_MULTIPLIER = re.compile(r"rope|loss|partial|mup_width")


def shrink(name: str, value: Any, fields: Fields, sizes: TinySizes) -> Any:
    """The tiny value of the field `name`, whose default is `value`; `fields` are all defaults, by name."""
    if isinstance(value, bool):
        return value or ("moe" in name and _SWITCH.search(name) is not None)
    if value is None or value == 0:
        return _switched_on(name, value, fields, sizes)
    if isinstance(value, float) or (value == 1 and _MULTIPLIER.search(name)):
        return _number(name, value)
    if isinstance(value, int) and counts_experts(name) and "zero" not in name:
        return sizes.experts
    if isinstance(value, int):
        return next((rule(name, value, fields, sizes) for pattern, rule in _RULES if re.search(pattern, name)), value)
    if isinstance(value, (list, tuple)):
        return type(value)(shrink(name, item, fields, sizes) for item in value)
    if isinstance(value, dict) and name.endswith("rates"):
        return {key: shrink(name, item, fields, sizes) for key, item in value.items()}
    return value


def _switched_on(name: str, value: Any, fields: Fields, sizes: TinySizes) -> Any:
    """Experts that the default leaves out."""
    if counts_experts(name):
        return sizes.experts
    if re.search(_TOP_K, name):
        return sizes.top_k
    if value is None and sizes.fill:
        return next((fill(fields, sizes) for pattern, fill in _FILL if re.search(pattern, name)), None)
    if re.search(_SHARED_COUNT, name):
        return 1
    if re.search(r"^moe_intermediate_size$|^shared_(expert_)?intermediate_size$", name):
        return sizes.expert
    if name == "first_k_dense_replace":  # a kind of layer that the code has
        return 1
    return value


def _number(name: str, value: float) -> float:
    """A multiplier of one would hide an error: give it a visible value."""
    if name in ("initializer_range", "init_std"):
        return 0.1
    if value == 1 and _MULTIPLIER.search(name) and not _NO_MULTIPLIER.search(name):
        return 1.25 if re.search("beta|rout|logits|embedding", name) else 0.75
    return value


def _heads(name: str, value: int, fields: Fields, sizes: TinySizes) -> int:
    """Attention heads; those of keys and values stay fewer than those of queries if they were."""
    if "mamba" in name:
        dim = next((v for k, v in fields.items() if re.search(r"mamba_(d_head|head_dim)$", k)), None)
        expand = next((v for k, v in fields.items() if re.search(r"(^|_)expand$", k)), 2)
        return expand * sizes.hidden // _head_dim(name, dim, fields, sizes) if isinstance(dim, int) else sizes.heads
    total = _first(fields, "num_attention_heads", "n_heads", "linear_num_value_heads", default=value)
    shared = _first(fields, "num_key_value_heads", "kv_n_heads", default=total)
    if re.search(r"kv|key", name) or (value == shared != total):
        whole = fields.get(name.replace("key_value", "attention").replace("num_key", "num_value"), total)
        whole = fields.get("linear_num_value_heads", whole) if name.startswith("linear") else whole
        return 1 if value == 1 else (sizes.heads if value >= whole else sizes.heads // 2)
    if name.startswith("linear"):
        return sizes.heads
    return max(2, min(sizes.heads, sizes.heads * value // total))


def _head_dim(name: str, value: int, fields: Fields, sizes: TinySizes) -> int:
    return max(4, value // (2 * sizes.head_shrink) * 2)


def _share_of_hidden(name: str, value: int, fields: Fields, sizes: TinySizes) -> int:
    return max(sizes.small, sizes.hidden * value // _first(fields, "hidden_size", "d_model", default=value))


def _share_of_experts(name: str, value: int, fields: Fields, sizes: TinySizes) -> int:
    total = next((v for k, v in fields.items() if counts_experts(k) and isinstance(v, int)), value)
    return max(1, sizes.experts * value // total)


def _border(name: str, value: int, fields: Fields, sizes: TinySizes) -> int:
    """The layer at which something starts or ends: at the same share of the layers, the first one being the second."""
    layers = _first(fields, "num_hidden_layers", "n_layers", default=value)
    return min(-(-value * sizes.layers // layers), sizes.layers - 1)


def _offset(name: str, value: int, fields: Fields, sizes: TinySizes) -> int:
    return value % min(fields.get(name.replace("offset", "period"), sizes.layers), sizes.layers)


def _first(fields: Fields, *names: str, default: int) -> int:
    return next((fields[name] for name in names if isinstance(fields.get(name), int)), default)


def _to(size: str) -> SizeRule:
    return lambda name, value, fields, sizes: getattr(sizes, size)


def _at_most(limit: int | str) -> SizeRule:
    return lambda name, value, fields, sizes: min(value, limit if isinstance(limit, int) else getattr(sizes, limit))


_RULES: tuple[tuple[str, SizeRule], ...] = (
    (r"token_id$", lambda name, value, fields, sizes: value if value < sizes.vocabulary else value % 8 + 1),
    (r"divisible_by$", lambda name, value, fields, sizes: value),
    (r"vocab_size", _to("vocabulary")),
    # experts
    (_SHARED_COUNT, _at_most(2)),
    (r"share[a-z]*_expert.*(size|dim)$|^shared_intermediate_size$", _to("expert")),
    (r"topk_group$", _at_most(2)),
    (r"(^|_)(n|num)_(expert_)?group$", _at_most(4)),
    (_TOP_K, _to("top_k")),
    (r"zero_expert", _share_of_experts),
    (r"expert_capacity", lambda name, value, fields, sizes: value),
    (r"moe_.*intermediate_size|expert.*(size|dim)$", _to("expert")),
    # layers
    (r"^(num|n)_(hidden_)?layers$", _to("layers")),
    (r"first_k_dense|num_dense_layers|decoder_sparse_step", _at_most(1)),
    (r"layer(_index)?_(start|end)|layer_index", _border),
    (r"layers_per.*block", _at_most(1)),  # borders are multiples of it
    (r"offset$", _offset),
    (r"(pattern|period|interval|step|_layers|layer_group_size)$", _at_most("layers")),
    # heads
    (r"rotary_dim|kv_channels|d_kv$|d_head$|head_dim$", _head_dim),
    (r"heads(_per_layer)?$", _heads),
    # sequences
    (r"window|attention_chunk_size|chunk_size$|block_size$", _at_most("window")),
    (r"rates$", _at_most("window")),
    (r"topk_blocks", _at_most(2)),
    (r"index_topk|kpool", _at_most(4)),
    (r"position_embeddings$|max_seq_len|max_length$", _at_most("vocabulary")),
    # widths
    (r"lora_rank$", _at_most("lora")),
    (r"rank$", _at_most(8)),
    (r"groups$", _at_most(2)),
    (r"state(_size)?$|rel_extent", _at_most("small")),
    (r"iters$", _at_most(4)),
    (r"intermediate_size|ffn_hidden_size|ffn_dim|d_ff$", _to("dense")),
    (r"^hidden_size$|^d_model$", _to("hidden")),
    (r"hidden_size|embed_dim$|latent_size$", _share_of_hidden),
)

_FILL: tuple[tuple[str, Callable[[Fields, TinySizes], int]], ...] = (
    (r"kv_heads$", lambda fields, sizes: 1),
    (r"heads$", lambda fields, sizes: 2),
    (
        r"head_dim$",
        lambda fields, sizes: (
            _head_dim("", fields["head_dim"], fields, sizes) if fields.get("head_dim") else sizes.hidden // sizes.heads
        ),
    ),
    (r"budget$", lambda fields, sizes: 4),
    (r"ratio$", lambda fields, sizes: 2),
    (r"clip", lambda fields, sizes: 8),
)
