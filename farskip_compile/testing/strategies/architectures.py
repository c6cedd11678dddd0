# SPDX-License-Identifier: Apache-2.0
"""Strategies: generated MoE architectures, and wishes for their connectivity."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from hypothesis import strategies as st

from farskip_compile.base.choices import ConnectivityName
from farskip_compile.models import FarSkipForm, ModelConfig
from farskip_compile.models.config import LayerKind, RouterKind
from farskip_compile.models.decoder import Decoder, build_decoder


@dataclass(frozen=True)
class GeneratedCase:
    """A model, an input size, and what is asked of the backend."""

    config: ModelConfig
    """The architecture."""
    connectivity: str
    """`full`, `attention`, `mlp` or `none`."""
    layers: tuple[int, int] | None
    """First and last layer that change, both inclusive; None: all."""
    batch: int
    """Sequences."""
    sequence: int
    """Tokens of each."""
    seed: int
    """Of the weights and the tokens."""

    def model(self, dtype: torch.dtype = torch.float64) -> Decoder:
        """The plain model, with seeded weights in `dtype`."""
        return build_decoder(self.config, seed=self.seed, dtype=dtype)

    def ids(self) -> torch.Tensor:
        """Token ids [batch, sequence]."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(0, self.config.vocab_size, (self.batch, self.sequence), generator=generator)

    def options(self, **more: Any) -> dict[str, Any]:
        """Options for `torch.compile`: what is asked for, and `more`."""
        layers = {} if self.layers is None else {"layers": self.layers}
        return {"connectivity": self.connectivity, **layers, **more}

    def oracle(self, model: Decoder) -> FarSkipForm:
        """What is asked for, written by hand around the modules of `model`."""
        return FarSkipForm(model, connectivity=cast(ConnectivityName, self.connectivity), layers=self.layers)


@st.composite
def configs(draw: st.DrawFn, max_layers: int = 5) -> ModelConfig:
    """Small decoders that differ in everything that detection or rewiring could trip over; at most `max_layers` layers,
    one MoE at least."""
    kinds: tuple[LayerKind, ...] = ("dense", "moe")
    mixers: tuple[Literal["gqa", "mla"], ...] = ("gqa", "mla")
    routers: tuple[RouterKind, ...] = ("softmax", "sigmoid_groups", "sigmoid_top1")
    pattern = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=max_layers))
    if "moe" not in pattern:
        pattern[draw(st.integers(0, len(pattern) - 1))] = "moe"
    attention = draw(st.sampled_from(mixers))
    heads = draw(st.sampled_from([1, 2, 4]))
    router = draw(st.sampled_from(routers))
    experts = draw(st.sampled_from([2, 4, 6]))
    groups = draw(st.sampled_from([1, 2])) if router == "sigmoid_groups" and experts >= 4 else 1
    top_k = draw(st.integers(1, 2))
    # the renormalised weight of a single expert is 1: the router's gradient would be rounding noise around zero
    renormalise = top_k > 1 and draw(st.booleans())
    return ModelConfig(
        vocab_size=17,
        hidden_size=16,
        layers=tuple(pattern),
        norm=draw(st.sampled_from(["rms", "layer"])),
        residual_scale=draw(st.sampled_from([1.0, 0.22, 0.5])),
        parallel_block=draw(st.booleans()),
        attention=attention,
        heads=heads,
        kv_heads=draw(st.sampled_from([h for h in (1, 2, 4) if h <= heads])),
        head_dim=8,
        qk_norm=draw(st.booleans()),
        query_rank=draw(st.sampled_from([None, 8])),
        kv_rank=8,
        nope_head_dim=4,
        rope_head_dim=4,
        value_head_dim=4,
        intermediate_size=24,
        moe_intermediate_size=8,
        experts=experts,
        top_k=top_k,
        shared_experts=draw(st.integers(0, 2)),
        router=router,
        renormalise_weights=renormalise,
        router_groups=groups,
        router_top_groups=1 if groups == 1 else draw(st.integers(1, groups)),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5])),
    )


@st.composite
def cases(draw: st.DrawFn, max_layers: int = 5) -> GeneratedCase:
    """A model of at most `max_layers` layers, and a wish that it can meet or that is refused for a stated reason."""
    config = draw(configs(max_layers))
    last = len(config.layers) - 1
    layers = None
    if draw(st.booleans()):
        first = draw(st.integers(0, last))
        layers = (first, draw(st.integers(first, last)))
    return GeneratedCase(
        config=config,
        connectivity=draw(st.sampled_from(["full", "attention", "mlp", "lag2", "ladder", "none"])),
        layers=layers,
        batch=draw(st.integers(1, 3)),
        sequence=draw(st.integers(2, 7)),
        seed=draw(st.integers(0, 3)),
    )


@st.composite
def parallel_cases(draw: st.DrawFn, layout: str, max_layers: int = 3) -> GeneratedCase:
    """A case whose experts, heads, widths and tokens two ranks can share; it is never refused.

    Args:
        layout: how it is parallel: `padded`, `dropless`, `allgather`, `tp`; `sp` at the end for sequence parallelism.
        max_layers: of the model.
    """
    case = draw(cases(max_layers).filter(lambda case: not nothing_to_leave_out(case)))
    config = dataclasses.replace(case.config, heads=4, kv_heads=draw(st.sampled_from([2, 4])))
    sequence = draw(st.sampled_from([2, 4, 6])) if layout.endswith("sp") else case.sequence
    return dataclasses.replace(case, config=config, sequence=sequence)


def nothing_to_leave_out(case: GeneratedCase) -> bool:
    """Whether no sub-block in the range of `case` could change: by the rules of the paper, not by the passes."""
    first, last = case.layers or (0, len(case.config.layers) - 1)
    for layer in range(first, last + 1):
        if case.connectivity not in ("attention", "none"):
            return False
        if case.connectivity == "attention" and layer > 0 and case.config.layers[layer - 1] == "moe":
            return False
    return case.connectivity != "none"
