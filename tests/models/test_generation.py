# SPDX-License-Identifier: Apache-2.0
"""`generate` on rewired models: prefill and decode steps through one compiled forward, against the eager oracle."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import farskip_compile
from farskip_compile import Outcome, prepare
from farskip_compile.errors import PartialModelError
from farskip_compile.models.generic_form import GenericFarSkipForm, installed
from farskip_compile.models.transformers_form import tiny_deepseek_v3
from tests.compare import relative_difference
from tests.models.test_transformers import COMMON, compiled, left_out, llama4, seeded
from tests.one_build import kernels_in_one_build

transformers = pytest.importorskip("transformers")

STEPS = 8
PADS = 4


def deepseek() -> nn.Module:
    """Multi-head latent attention, shared experts."""
    return tiny_deepseek_v3(3)


def lfm2() -> nn.Module:
    """Short convolutions with a state of their own between attention with keys and values."""
    common = {key: value for key, value in COMMON.items() if key != "head_dim"}
    config = transformers.Lfm2MoeConfig(
        **(common | {"num_hidden_layers": 3}),
        moe_intermediate_size=32,
        num_experts=4,
        num_dense_layers=1,
        layer_types=["conv", "full_attention", "conv"],
    )
    return seeded(transformers.Lfm2MoeForCausalLM, config)


def mixtral(layers: int = 3) -> nn.Module:
    """A window shorter than the prompt: its cache wraps around."""
    config = transformers.MixtralConfig(
        **(COMMON | {"num_hidden_layers": layers}), num_local_experts=4, sliding_window=5
    )
    return seeded(transformers.MixtralForCausalLM, config)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[str, ...]]]] = {
    "deepseek_v3": (
        deepseek,
        {"mlp.0": ("a0",), "moe.1": ("a1",), "attention.2": ("r1",), "moe.2": ("a2",)},
    ),
    "lfm2_moe": (
        lfm2,
        {"mlp.0": ("a0",), "moe.1": ("a1",), "mixer.2": ("r1",), "moe.2": ("a2",)},
    ),
    "llama4": (
        llama4,
        {"mlp.0": ("a0",), "moe.1": ("a1",), "attention.2": ("r1",), "mlp.2": ("a2",), "moe.3": ("a3",)},
    ),
    "mixtral": (
        mixtral,
        {"moe.0": ("a0",), "attention.1": ("r0",), "moe.1": ("a1",), "attention.2": ("r1",), "moe.2": ("a2",)},
    ),
}


def prompts() -> dict[str, torch.Tensor]:
    """Two, the second one shorter and padded on the left."""
    tokens = torch.randint(3, 128, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    tokens[1, :PADS] = mask[1, :PADS] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def generate(model: Any, tokens: torch.Tensor | None = None, **options: Any) -> Any:
    """Greedy, all steps, with a static cache."""
    inputs = prompts() if tokens is None else {"input_ids": tokens, "attention_mask": (tokens != 0).long()}
    return model.generate(
        **inputs,
        do_sample=False,
        use_cache=True,
        eos_token_id=None,
        pad_token_id=0,
        max_new_tokens=STEPS,
        cache_implementation="static",
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


@contextmanager
def oracle(model: Any) -> Iterator[None]:
    """With the signature of the model's own forward: `generate` passes what it finds there, such as positions."""
    with installed(model) as form, torch.no_grad():
        model.forward = functools.wraps(form.original)(lambda *args, **kwargs: form(*args, **kwargs))
        yield


def cached(output: Any) -> list[torch.Tensor]:
    """All tensors in the cache: keys, values, states of convolutions, lengths."""
    cache = output.cache if "cache" in output else output.past_key_values
    return [value for layer in cache.layers for value in tensors(vars(layer))]


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in tensors(item)]


def token_by_token(model: nn.Module) -> torch.Tensor:
    """The new tokens of each prompt on its own: no batch, no padding, no cache."""
    form = GenericFarSkipForm(model)
    rows = []
    for prompt, mask in zip(*prompts().values(), strict=True):
        row = prompt[mask.bool()].unsqueeze(0)
        for _ in range(STEPS):
            with torch.no_grad():
                row = torch.cat([row, form(row).logits[:, -1:].argmax(-1)], dim=1)
        rows.append(row[:, -STEPS:])
    return torch.cat(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_is_bit_equal_to_the_oracle(family: str) -> None:
    build, expected_left_out = FAMILIES[family]
    model = build().double()
    prepare(model)
    plainly = generate(model)
    with oracle(model):
        expected = generate(model)
    alone = token_by_token(model)
    if family == "deepseek_v3":
        model.compile(backend="farskip", fullgraph=True, options={"inner": "eager"})
    else:
        model.forward = compiled(model.forward)
    output = generate(model)
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.sequences[:, -STEPS:], alone)
    assert not torch.equal(output.sequences, plainly.sequences)
    assert all(torch.equal(left, right) for left, right in zip(output.logits, expected.logits, strict=True))
    pairs = list(zip(cached(output), cached(expected), strict=True))
    assert all(torch.equal(left, right) for left, right in pairs)
    assert sum(value.dim() > 2 and bool(value.any()) for value, _ in pairs) >= len(model.model.layers)
    reports = farskip_compile.reports().compiles
    assert [report.outcome for report in reports] == [Outcome.REWIRED] * 2  # prefill, and all decode steps
    assert [left_out(report) for report in reports] == [expected_left_out] * 2


# What `generate` does on its own


def test_generate_does_not_compile_decode_steps_itself() -> None:
    """As it does on accelerators; a private flag of transformers lets it do so anywhere."""
    graphs: list[torch.fx.GraphModule] = []

    def other_backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    model: Any = mixtral(2).double()
    prepare(model)
    with oracle(model):
        expected = generate(model)
    config = transformers.CompileConfig(backend=other_backend, mode=None, dynamic=False)
    config._compile_all_devices = True
    model.forward = compiled(model.forward)
    own_config = transformers.GenerationConfig(compile_config=config)
    assert torch.equal(generate(model, generation_config=own_config).sequences, expected.sequences)
    assert not graphs
    assert not hasattr(model, "_compiled_call")
    model.generation_config.disable_compile = None
    generate(model, generation_config=own_config)
    assert hasattr(model, "_compiled_call")  # that is what it would have done


def test_experts_implementation_switched_while_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate` does that on accelerators: two kernels for the experts, one rewired model."""
    model: Any = mixtral(2)
    prepare(model)
    assert model.config._experts_implementation == "grouped_mm"

    @contextmanager
    def switched() -> Iterator[None]:
        model.set_experts_implementation("batched_mm")
        yield
        model.set_experts_implementation("grouped_mm")

    with oracle(model):
        expected = generate(model)
    monkeypatch.setattr(model, "_optimize_model_for_decode", switched, raising=True)
    model.forward = compiled(model.forward)
    output = generate(model)
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.logits[0], expected.logits[0])
    assert all(relative_difference(*pair) < 1e-5 for pair in zip(output.logits, expected.logits, strict=True))
    reports = farskip_compile.reports().compiles
    assert [left_out(report) for report in reports] == [
        {"moe.0": ("a0",), "attention.1": ("r0",), "moe.1": ("a1",)}
    ] * 2


GUESSES: dict[str, Callable[[], dict[str, Any]]] = {
    "of an assistant": lambda: {"assistant_model": tiny_deepseek_v3(2)},
    "by a lookup in the prompt": lambda: {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("guesses", GUESSES)
def test_guesses_of_many_lengths_exceed_dynamos_limit_and_the_way_out_works(guesses: str) -> None:
    model = deepseek().double()
    prepare(model)
    tokens = prompts()["input_ids"][:1].repeat(1, 2)

    def generated() -> torch.Tensor:
        guessed = GUESSES[guesses]()
        return model.generate(tokens, do_sample=False, use_cache=True, max_new_tokens=STEPS, pad_token_id=0, **guessed)

    with oracle(model):
        expected = generated()
    model.compile(backend="farskip", options={"inner": "eager"})
    with torch._dynamo.config.patch(recompile_limit=2), pytest.raises(PartialModelError, match="not rewired") as caught:
        generated()
    assert "modeling_deepseek_v3.py" in str(caught.value.where)
    assert "a higher torch._dynamo.config.recompile_limit" in caught.value.way_out
    with torch._dynamo.config.patch(recompile_limit=64):
        assert torch.equal(generated(), expected)


def test_the_page_on_generation_with_inductor(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/generation.md runs as shown and prints what it says. Float32, other kernels: logits within rounding."""
    page = (Path(__file__).parents[2] / "docs" / "generation.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shown: dict[str, Any] = {}
    torch.manual_seed(0)
    with kernels_in_one_build():
        exec(code, shown)
    assert capsys.readouterr().out == "".join(
        f"{line}\n" for line in re.findall(r"^    (rewired .*)", page, re.MULTILINE)
    )
    torch.manual_seed(0)
    fresh = transformers.MixtralForCausalLM(copy.deepcopy(shown["config"])).eval()
    fresh.config.use_cache = False  # `generate` asks for a cache itself; the oracle looks around without one
    with oracle(fresh):
        expected = generate(fresh, shown["prompts"])
    output = generate(shown["model"], shown["prompts"])
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(shown["tokens"][:, : output.sequences.shape[1]], expected.sequences)
    assert not torch.equal(generate(fresh, shown["prompts"]).sequences, expected.sequences)
    assert all(relative_difference(*pair) < 1e-5 for pair in zip(output.logits, expected.logits, strict=True))
