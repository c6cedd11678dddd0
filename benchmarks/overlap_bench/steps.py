"""The step of each phase, on fixed inputs.

prefill    the forward pass of one sequence under no_grad
decode     one more token for each of many sequences, with the keys and values of those before in a cache of fixed
           size; under no_grad. The cache holds random values, the same for all variants, and every step writes the
           same position
training   forward, cross-entropy, and backward for the gradients of all parameters
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.profiler import record_function

from farskip_compile.models import Decoder
from overlap_bench.cells import DECODE, TRAINING

BACKWARD = "farskip benchmark: backward"
"""Name of the profiler's range over the backward pass."""


@dataclass(frozen=True)
class Variant:
    """One way to run the model."""

    name: str
    model: Decoder
    """Holds the parameters, and after a training step their gradients."""
    run: Callable[..., torch.Tensor]
    """Called as the model is."""


class Step:
    """The step of a cell.

    Args:
        settings: of the cell.
        rank: of this process. Each has its own tokens, except under tensor parallelism.
        model: like those of the variants; needed to make a cache.
    """

    def __init__(self, settings: Mapping[str, Any], rank: int, model: Decoder | None = None) -> None:
        source = 0 if settings["tensor_parallel"] else rank
        generator = torch.Generator().manual_seed(1000 + source)
        shape, vocabulary = (settings["batch"], settings["tokens"]), settings["overrides"]["vocab_size"]
        self.phase: str = settings["phase"]
        self.ids = torch.randint(0, vocabulary, shape, generator=generator)
        self.labels = torch.randint(0, vocabulary, (shape[0] * shape[1],), generator=generator)
        self.cached: int = settings["cached"]
        self.cache = None
        if self.phase == DECODE:
            assert model is not None
            # some room after the decoded token, as in a cache of fixed size
            self.cache = model.new_cache(shape[0], self.cached + max(1, self.cached // 3))
            for memory in (*self.cache.keys, *self.cache.values):
                memory.copy_(torch.randn(memory.shape, generator=generator))

    def __call__(self, variant: Variant) -> torch.Tensor:
        """Logits [B, T, vocabulary], or the loss."""
        if self.phase != TRAINING:
            with torch.no_grad():
                if self.cache is None:
                    return variant.run(self.ids)
                self.cache.position.fill_(self.cached)
                return variant.run(self.ids, cache=self.cache)
        variant.model.zero_grad(set_to_none=True)
        loss = F.cross_entropy(variant.run(self.ids).flatten(0, 1), self.labels)
        with record_function(BACKWARD):
            loss.backward()
        return loss.detach()

    def resident_bytes(self, model: Decoder) -> int:
        """Bytes allocated before and after the step: parameters, buffers, and the cache."""
        cached = (*self.cache.keys, *self.cache.values) if self.cache is not None else ()
        return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), *cached))

    def results(self, variant: Variant) -> dict[str, torch.Tensor]:
        """Logits; or loss and gradients by parameter."""
        output = self(variant)
        if self.phase != TRAINING:
            return {"logits": output.clone()}
        gradients = {name: p.grad for name, p in variant.model.named_parameters() if p.grad is not None}
        return {"loss": output.clone(), **{name: gradient.clone() for name, gradient in gradients.items()}}


def compare(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The largest relative error of all tensors, |one - other| / |other| in Euclidean norms."""
    if one.keys() != other.keys():
        raise AssertionError(f"only one of two variants has {sorted(one.keys() ^ other.keys())}")
    errors = {}
    for name, wanted in other.items():
        norm = torch.linalg.vector_norm(wanted.double()).item()
        errors[name] = torch.linalg.vector_norm(one[name].double() - wanted.double()).item() / (norm or 1.0)
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
    return {"tensors": len(errors), "worst": worst, "error": errors[worst]}
