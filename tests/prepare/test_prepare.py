# SPDX-License-Identifier: Apache-2.0
"""`prepare`: what it changes makes models capture, changes no result, and goes back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import farskip_compile
from farskip_compile import ConfigError, Outcome, prepare
from farskip_compile.models import build
from farskip_compile.models.generic_form import GenericFarSkipForm
from farskip_compile.models.transformers_form import tiny_deepseek_v3
from tests.compare import relative_difference
from tests.models.test_transformers import COMMON, compiled, ids, mixtral, qwen3_moe, seeded

transformers = pytest.importorskip("transformers")

FLOAT32_ROUNDING = 1e-5


def captures(model: nn.Module, **kwargs: Any) -> bool:
    """Whether Dynamo takes the model as one graph; the backend of this package is not asked."""
    torch.compiler.reset()
    try:
        torch.compile(model, backend="eager", fullgraph=True)(ids(), **kwargs)
    except Exception:
        return False
    return True


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(ids()).logits


def whats(preparation: farskip_compile.Preparation) -> str:
    return "; ".join(change.what for change in preparation.changes)


def two_layers(build_model: Callable[[], nn.Module] = qwen3_moe) -> nn.Module:
    model = build_model()
    del model.model.layers[2:]
    return model


def longcat(zero_experts: int = 2, layers: int = 2) -> nn.Module:
    config = transformers.LongcatFlashConfig(
        **(COMMON | {"num_key_value_heads": 4, "head_dim": 8, "num_hidden_layers": 2 * layers}),
        ffn_hidden_size=96,
        expert_ffn_hidden_size=32,
        num_layers=layers,
        n_routed_experts=4,
        zero_expert_num=zero_experts,
        moe_topk=2,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
    )
    model = seeded(transformers.LongcatFlashForCausalLM, config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


# Experts that transformers dispatches


def test_eager_experts_capture_after_it_and_not_before() -> None:
    model = two_layers()
    model.set_experts_implementation("eager")
    expected = logits(model)
    assert not captures(model)
    preparation = prepare(model)
    assert "experts implementation of model.layers.0.mlp.experts;" in whats(preparation)
    assert model.config._experts_implementation == "grouped_mm"
    assert captures(model)
    assert relative_difference(logits(model), expected) < FLOAT32_ROUNDING


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_an_implementation_that_captures_stays(implementation: str) -> None:
    model = two_layers()
    model.set_experts_implementation(implementation)
    expected = logits(model)
    assert "implementation" not in whats(prepare(model))
    assert model.config._experts_implementation == implementation
    assert torch.equal(logits(model), expected)  # hooks and the configuration of generate change no bit


@pytest.mark.parametrize("before", ["eager", "grouped_mm"])
def test_float64_gets_batched_mm(before: str) -> None:
    model = two_layers().double()
    model.set_experts_implementation("eager")
    expected = logits(model)
    model.set_experts_implementation(before)
    prepare(model)
    assert model.config._experts_implementation == "batched_mm"
    assert relative_difference(logits(model), expected) < 1e-6  # norms compute in float32
    with torch.no_grad():
        assert torch.equal(compiled(model)(ids()).logits, GenericFarSkipForm(model)(ids()).logits)


def vision_language_model() -> nn.Module:
    text = {
        **COMMON,
        "num_hidden_layers": 2,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e4},
    }
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
    config = transformers.Qwen3VLMoeConfig(text_config=text, vision_config={**vision, "deepstack_visual_indexes": [0]})
    return seeded(transformers.Qwen3VLMoeForConditionalGeneration, config)


class Wrapper(nn.Module):
    """Not a model of transformers, but holds one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.inner(tokens).logits


@pytest.mark.parametrize("wrap", [False, True], ids=["itself", "in a module"])
def test_nested_models_are_found(wrap: bool) -> None:
    inner = vision_language_model()
    inner.set_experts_implementation("eager")
    model = Wrapper(inner) if wrap else inner
    assert not captures(model)
    preparation = prepare(model)
    assert captures(model)
    implementations = inner.get_experts_implementation()
    assert implementations == {"": "eager", "vision_config": "eager", "text_config": "grouped_mm"}
    preparation.undo()
    assert set(inner.get_experts_implementation().values()) == {"eager"}


def test_only_the_configuration_that_dispatches_is_written() -> None:
    model = vision_language_model()
    for module in model.modules():
        if hasattr(module, "_is_expert_parallel"):
            module.config = model.config  # dispatched by the outer one, then
    model.config._experts_implementation = {"": "eager", "text_config": "batched_mm"}
    prepare(model)
    implementations = model.get_experts_implementation()
    assert (implementations[""], implementations["text_config"]) == ("grouped_mm", "batched_mm")


# Outputs that transformers records, and the first call


@pytest.mark.parametrize("asked", ["output_router_logits", "output_hidden_states"])
def test_recorded_outputs_capture_in_the_first_call(asked: str) -> None:
    model = two_layers()
    assert not captures(copy.deepcopy(model), **{asked: True})
    prepare(model)
    output = compiled(model)(ids(), **{asked: True})
    (report,) = farskip_compile.reports().compiles
    assert report.outcome is Outcome.REWIRED
    with torch.no_grad():
        expected = GenericFarSkipForm(model)(ids(), **{asked: True})
    key = asked.removeprefix("output_")
    assert len(output[key]) == len(expected[key]) > 0
    assert all(torch.equal(left, right) for left, right in zip(output[key], expected[key], strict=True))


def test_labels_with_router_logits() -> None:
    """The loss has the routers' auxiliary loss in it."""
    model = two_layers()
    prepare(model)
    model.train()
    output = compiled(model)(ids(), labels=ids(), output_router_logits=True)
    expected = GenericFarSkipForm(model)(ids(), labels=ids(), output_router_logits=True)
    assert output.aux_loss.item() == pytest.approx(expected.aux_loss.item(), rel=1e-6)
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    output.loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "gate" in n or "q_proj" in n)


def test_hooks_are_not_installed_twice() -> None:
    model = two_layers()
    expected = model(ids(), output_hidden_states=True).hidden_states  # installs them in the inner model
    assert "hooks" not in whats(prepare(model))
    assert len(model(ids(), output_hidden_states=True).hidden_states) == len(expected) == 3


class Stateful(nn.Module):
    """Makes a table in its first call, counts its calls, drops, and fills the cache it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.table: torch.Tensor | None = None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor, cache: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.table is None:
            self.table = torch.arange(x.shape[-1])
        self.calls += 1
        cache["x"] = x
        assert not torch.is_grad_enabled()
        return nn.functional.dropout(x, training=self.training) * self.table


def test_the_warm_up_keeps_state() -> None:
    model = Stateful()
    cache: dict[str, torch.Tensor] = {}
    state = torch.get_rng_state()
    assert not prepare(model, torch.ones(2, 3, requires_grad=True).exp(), cache=cache).changes
    assert model.table is not None
    assert model.calls == 0
    assert model.training
    assert not cache
    assert torch.equal(torch.get_rng_state(), state)


def test_a_warm_up_that_fails_leaves_the_model_as_it_was() -> None:
    model = two_layers()
    model.set_experts_implementation("eager")
    with pytest.raises(RuntimeError, match="indices"):
        prepare(model, ids().float())
    assert model.config._experts_implementation == "eager"


# All together


def state_of(model: Any) -> dict[str, Any]:
    return {
        "implementation": model.config._experts_implementation,
        "hooks": sum(len(m._forward_hooks) for m in model.modules()),
        "installed": [n for n, m in model.named_modules() if hasattr(m, "_output_capturing_hooks_installed")],
        "forward": [n for n, m in model.named_modules() if "forward" in vars(m)],
        "compiles": model.generation_config.disable_compile,
        "training": [m.training for m in model.modules()],
    }


@pytest.mark.parametrize("build_model", [qwen3_moe, mixtral, longcat, lambda: tiny_deepseek_v3(2)])
def test_a_second_time_changes_nothing_and_undo_restores(build_model: Callable[[], Any]) -> None:
    model = build_model().train()
    if model.config._experts_implementation != "eager":
        model.set_experts_implementation("eager")
    before = state_of(model)
    parameters = {name: value.clone() for name, value in model.state_dict().items()}
    preparation = prepare(model)
    prepared = state_of(model)
    assert len(preparation.changes) == 4
    again = prepare(model)
    assert (again.changes, again.notes) == ((), ())
    assert str(again) == "nothing had to be changed"
    again.undo()
    assert state_of(model) == prepared != before
    preparation.undo()
    assert state_of(model) == before
    model.generation_config.disable_compile = "set since"
    preparation.undo()  # once only
    assert model.generation_config.disable_compile == "set since"
    assert all(torch.equal(value, parameters[name]) for name, value in model.state_dict().items())


def test_it_prints_in_80_columns() -> None:
    model = two_layers()
    model.set_experts_implementation("eager")
    text = str(prepare(model))
    assert max(map(len, text.splitlines())) <= 80
    assert "  before  eager\n    after   grouped_mm\n    why     the loop" in text


def test_a_model_that_needs_nothing_is_untouched() -> None:
    model = build("deepseek_v3")
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    preparation = prepare(model)
    assert (preparation.changes, preparation.notes) == ((), ())
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile()
    return model


def compiled_forward(model: nn.Module) -> nn.Module:
    model.forward = torch.compile(model.forward)
    return model


@pytest.mark.parametrize(
    "wrong", [torch.compile, compiled_in_place, compiled_forward, lambda model: nn.Sequential(compiled_in_place(model))]
)
def test_a_compiled_model_is_refused(wrong: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(ConfigError, match="compiled already"):
        prepare(wrong(nn.Linear(2, 2)))


def test_only_modules_are_taken() -> None:
    with pytest.raises(ConfigError, match="takes a module, not function"):
        prepare(lambda x: x)  # type: ignore[arg-type]
