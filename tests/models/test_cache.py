# SPDX-License-Identifier: Apache-2.0
"""Decode steps with a cache of fixed size: the same function as one forward over all tokens, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import farskip_compile
from farskip_compile import Outcome
from farskip_compile.errors import ConfigError
from farskip_compile.models import Decoder, FarSkipForm, ParallelConfig, build
from farskip_compile.models.cache import KeyValueCache
from tests.compare import relative_difference
from tests.distributed.ranks import run_ranks

PROMPT, STEPS, ROOM = 5, 4, 12
SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "layers": ("dense", "moe", "moe")}
FORMS: dict[str, Callable[[Decoder], nn.Module]] = {"plain": lambda model: model, "farskip": FarSkipForm}
ATTENTIONS = ["deepseek_v3", "qwen3_moe"]  # latent; grouped queries


def ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 32, (2, PROMPT + STEPS), generator=torch.Generator().manual_seed(seed))


def step_by_step(function: Callable[..., torch.Tensor], tokens: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
    """Logits of all tokens: a prefill, then one token after another."""
    with torch.no_grad():
        logits = [function(tokens[:, :PROMPT], cache=cache)]
        for place in range(PROMPT, tokens.shape[1]):
            logits.append(function(tokens[:, place : place + 1], cache=cache))
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_prefill_and_decode_are_one_forward(name: str, form: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        model = build(name, dtype=dtype, **SMALL)
        function = FORMS[form](model)
        cache = model.new_cache(2, ROOM)
        assert relative_difference(step_by_step(function, ids(), cache), function(ids())) < tolerance
        assert cache.position == PROMPT + STEPS
        assert not cache.keys[0][:, :, PROMPT + STEPS :].any()
        cache.reset()  # what is still in its memory must not be seen
        assert relative_difference(step_by_step(function, ids(1), cache), function(ids(1))) < tolerance


def test_a_cache_belongs_to_one_wiring() -> None:
    model = build("qwen3_moe", dtype=torch.float64, **SMALL)
    caches = []
    for form in FORMS.values():
        caches.append(model.new_cache(2, ROOM))
        step_by_step(form(model), ids(), caches[-1])
    differ = [not torch.equal(one, other) for one, other in zip(caches[0].keys, caches[1].keys, strict=True)]
    assert differ == [False, True, True]  # the first attention reads the embeddings in any case


def test_the_farskip_form_caches_what_it_projects_from_n() -> None:
    model = build("deepseek_v3", dtype=torch.float64, **SMALL)
    form, cache = FarSkipForm(model), model.new_cache(2, ROOM)
    step_by_step(form, ids(), cache)
    x = n = model.embed(ids())
    rope = model.rope(x, PROMPT + STEPS)
    for index, layer in enumerate(model.layers):
        key, value = layer.attention.project(layer.attention_norm(n), rope)[1:]
        assert relative_difference(cache.keys[index][:, :, : PROMPT + STEPS], key) < 1e-12
        assert relative_difference(cache.values[index][:, :, : PROMPT + STEPS], value) < 1e-12
        x, n = form.layer(index, x, n, rope)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_compiled_whole_and_once(name: str) -> None:
    """Prefill and decode step are two graphs, in which all terms are found; no further ones from token to token."""
    model = build(name, dtype=torch.float64, **(SMALL | {"layers": ("moe", "moe")}))
    expected_cache, cache = model.new_cache(2, ROOM), model.new_cache(2, ROOM)
    expected = step_by_step(FarSkipForm(model), ids(), expected_cache)
    compiled = torch.compile(
        model, backend="farskip", fullgraph=True, dynamic=False, options={"connectivity": "full", "inner": "eager"}
    )
    assert torch.equal(step_by_step(compiled, ids(), cache), expected)
    for one, other in zip([*cache.keys, *cache.values], [*expected_cache.keys, *expected_cache.values], strict=True):
        assert torch.equal(one, other)
    reports = farskip_compile.reports().compiles
    assert [report.outcome for report in reports] == [Outcome.REWIRED] * 2
    assert reports[0].terms == reports[1].terms
    without_cache = torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager"})
    without_cache(ids())
    assert farskip_compile.reports().compiles[-1].terms == reports[0].terms
    cache.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(step_by_step(compiled, ids(), cache), expected)


def test_nonsense_is_refused() -> None:
    model = build("mixtral", **SMALL)
    with pytest.raises(ConfigError, match="holds nothing"):
        model.new_cache(2, 0)
    with pytest.raises(ConfigError, match="batch"):
        model(ids(), cache=model.new_cache(3, ROOM))
    with pytest.raises(ConfigError, match="more tokens"):
        model(ids(), cache=model.new_cache(2, PROMPT))
    for run in (model, torch.compile(model, backend="eager", fullgraph=True)):
        with pytest.raises(ConfigError, match="no gradients"):
            run(ids(), cache=model.new_cache(2, ROOM))


def on_two_ranks(rank: int, world_size: int) -> None:
    world = dist.group.WORLD
    for name in ATTENTIONS:
        overrides = SMALL | ({} if name == "deepseek_v3" else {"kv_heads": 2})
        whole = FarSkipForm(build(name, dtype=torch.float64, **overrides))(ids())
        own = FarSkipForm(build(name, dtype=torch.float64, **overrides))(ids(rank))
        for parallel, expected, tokens in (
            (ParallelConfig(tp_group=world), whole, ids()),
            (ParallelConfig(ep_group=world), own, ids(rank)),
            (ParallelConfig(ep_group=world, ep_mode="dropless"), own, ids(rank)),
        ):
            model = build(name, dtype=torch.float64, parallel=parallel, **overrides)
            cache = model.new_cache(2, ROOM)
            assert cache.keys[0].shape[1] * parallel.tp_size == (4 if name == "deepseek_v3" else 2)
            assert relative_difference(step_by_step(FarSkipForm(model), tokens, cache), expected) < 1e-12


def test_ranks_cache_their_heads_and_their_sequences() -> None:
    run_ranks(on_two_ranks, 2)
