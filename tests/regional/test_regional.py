# SPDX-License-Identifier: Apache-2.0
"""Layers compiled one by one compute what the form by hand does, bit for bit, in each way in which people call them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

import farskip_compile
from farskip_compile.errors import ManifestError, PartialModelError
from farskip_compile.models import FarSkipForm, build
from farskip_compile.models.generic_form import GenericFarSkipForm
from farskip_compile.tools.describe import from_report
from tests.compare import run_with_gradients

SMALL: dict[str, Any] = {"vocab_size": 32, "layers": ("dense", "moe", "moe", "moe"), "hidden_size": 32}
IDS = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(0))


def model_of(name: str = "deepseek_v3", dtype: torch.dtype = torch.float64) -> Any:
    return build(name, dtype=dtype, **SMALL)


def check(model: nn.Module, form: Callable[..., Any], run: Callable[..., Any] | None = None) -> None:
    """Outputs and all gradients of a call, bit for bit."""
    expected, wanted = run_with_gradients(form, model, IDS)
    output, gradients = run_with_gradients(run or model, model, IDS)
    assert torch.equal(output, expected)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, wanted[name]), name


# What is asked for


@pytest.mark.parametrize("connectivity", ["full", "attention", "mlp", "lag2", "ladder"])
@pytest.mark.parametrize("layers", [None, (1, 2), (3, 3)])
def test_equals_the_form_by_hand(connectivity: Any, layers: Any) -> None:
    model = model_of()
    form = FarSkipForm(copy.deepcopy(model), connectivity=connectivity, layers=layers)
    expected = form(IDS)
    farskip_compile.regional(model, connectivity, layers, inner="eager")
    with torch.no_grad():
        assert torch.equal(model(IDS), expected)


@pytest.mark.parametrize("name", ["deepseek_v3", "mixtral", "llama4"])
def test_gradients_equal_those_of_the_form(name: str) -> None:
    model = model_of(name)
    form = FarSkipForm(model)
    farskip_compile.regional(model, "full", inner="eager")
    check(model, form)


def test_none_is_the_model_itself() -> None:
    model = model_of()
    plain = copy.deepcopy(model)
    farskip_compile.regional(model, "none", inner="eager")
    with torch.no_grad():
        assert torch.equal(model(IDS), plain(IDS))


def test_the_table_is_that_of_the_whole_model() -> None:
    model = model_of()
    whole = torch.compile(copy.deepcopy(model), backend="farskip", fullgraph=True, options={"inner": "eager"})
    with torch.no_grad():
        whole(IDS)
    (report,) = farskip_compile.reports().compiles
    regional = farskip_compile.regional(model, "full", inner="eager")
    with torch.no_grad():
        model(IDS)
    assert regional.table == report.table
    assert [row.left_out for row in regional.table.rows] == [row.left_out for row in report.table.rows]


def test_layers_that_are_alike_share_a_graph() -> None:
    model = build("mixtral", vocab_size=32, hidden_size=32, layers=("moe",) * 7)
    farskip_compile.regional(model, "full", inner="eager")
    with torch.no_grad():
        model(IDS)
    assert len(farskip_compile.reports().compiles) == 3  # the first, which nothing comes into, the last, and all others


def test_undone_it_is_as_it_was() -> None:
    model = model_of()
    before = copy.deepcopy(model)
    keys, names = list(model.state_dict()), [name for name, _ in model.named_modules()]
    regional = farskip_compile.regional(model, "full", inner="eager")
    with torch.no_grad():
        rewired = model(IDS)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == names
    regional.undo()
    assert not any("forward" in vars(layer) for layer in model.layers)
    with torch.no_grad():
        plain = model(IDS)
    assert torch.equal(plain, before(IDS))
    assert not torch.equal(plain, rewired)


def test_manifests() -> None:
    """That of the model says what to do; it is the one that its own report comes to; that of another one is refused."""
    model, other = model_of(), build("deepseek_v3", **{**SMALL, "hidden_size": 64})
    form = FarSkipForm(copy.deepcopy(model))
    right, wrong = (farskip_compile.describe(one, IDS) for one in (model, other))
    regional = farskip_compile.regional(model, manifest=right, inner="eager")
    with torch.no_grad():
        assert torch.equal(model(IDS), form(IDS))
    made = from_report(regional.report, model)
    assert made.table == right.table
    assert set(right.fingerprint.used) <= set(made.fingerprint.used)
    with pytest.raises(PartialModelError, match="one by one"):
        farskip_compile.describe(model, IDS)
    regional.undo()
    farskip_compile.regional(model, manifest=wrong, inner="eager")
    with torch.no_grad(), pytest.raises(ManifestError, match="shape"):
        model(IDS)


# Ways to call it


def test_loops_that_compile_layers() -> None:
    model = model_of()
    form = FarSkipForm(model)
    farskip_compile.regional(model, compile=False)
    for layer in model.layers:
        layer.compile(backend="farskip", fullgraph=True, options={"inner": "eager"})
    check(model, form)


def test_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate.utils")
    model = model_of()
    expected = FarSkipForm(copy.deepcopy(model))(IDS)
    farskip_compile.regional(model, compile=False)
    compiled = accelerate.compile_regions(model, backend="farskip", fullgraph=True, options={"inner": "eager"})
    with torch.no_grad():
        assert torch.equal(compiled(IDS), expected)


def saves_products(ctx: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    saved = operator == torch.ops.aten.mm.default
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE


POLICY = partial(create_selective_checkpoint_contexts, saves_products)


@pytest.mark.parametrize("policy", [None, POLICY], ids=["full", "selective"])
@pytest.mark.parametrize("inside", [False, True], ids=["around the compiled layer", "inside of what is compiled"])
def test_activation_checkpointing(policy: Any, inside: bool) -> None:
    model = model_of()
    form = FarSkipForm(copy.deepcopy(model))
    expected, wanted = run_with_gradients(form, form.decoder, IDS)
    farskip_compile.regional(model, "full", compile=not inside, inner="aot_eager")
    options = {} if policy is None else {"context_fn": policy}
    for number, layer in enumerate(model.layers):
        model.layers[number] = checkpoint_wrapper(layer, **options)
        if inside:
            model.layers[number].compile(backend="farskip", fullgraph=True, options={"inner": "aot_eager"})
    output, gradients = run_with_gradients(model, model, IDS)
    assert torch.equal(output, expected)
    plain = {name.replace("._checkpoint_wrapped_module", ""): value for name, value in gradients.items()}
    for name, value in plain.items():
        assert torch.equal(value, wanted[name]), name


def test_autocast() -> None:
    model = model_of(dtype=torch.float32)
    whole = copy.deepcopy(model)
    compiled = torch.compile(whole, backend="farskip", fullgraph=True, options={"inner": "eager"})
    farskip_compile.regional(model, "full", inner="eager")
    with torch.autocast("cpu", torch.bfloat16):
        expected, wanted = run_with_gradients(compiled, whole, IDS)
        output, gradients = run_with_gradients(model, model, IDS)
    assert torch.equal(output, expected)
    assert all(torch.equal(gradients[name], wanted[name]) for name in wanted)


def test_gradients_add_up() -> None:
    model = model_of()
    twin = copy.deepcopy(model)
    form = FarSkipForm(twin)
    farskip_compile.regional(model, "full", inner="eager")
    for shift in range(3):
        for run in (model, form):
            run((IDS + shift) % 32).square().mean().backward()
    for (name, one), (_, other) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def test_lengths_that_change_compile_twice() -> None:
    model = model_of()
    form = FarSkipForm(copy.deepcopy(model))
    farskip_compile.regional(model, "full", inner="eager")
    counts = []
    for length in (6, 7, 9, 12, 5):
        ids = torch.arange(2 * length).view(2, length) % 32
        with torch.no_grad():
            assert torch.equal(model(ids), form(ids))
        counts.append(len(farskip_compile.reports().compiles))
    assert counts == [4, 8, 8, 8, 8]


def test_layers_that_share_a_forward_are_compiled_more_often_than_dynamo_compiles_one() -> None:
    model = model_of()
    form = FarSkipForm(copy.deepcopy(model))
    limit = torch._dynamo.config.recompile_limit
    layers = farskip_compile.regional(model, "full", inner="eager", dynamic=False)
    lengths = range(2, 3 + limit // len(model.layers))
    with torch.no_grad():
        for length in lengths:
            ids = torch.arange(length).view(1, length) % 32
            assert torch.equal(model(ids), form(ids))
    assert len(farskip_compile.reports().compiles) == len(lengths) * len(model.layers) > limit
    layers.undo()
    assert torch._dynamo.config.recompile_limit == limit


def test_hooks_between_layers_see_the_stream() -> None:
    model = model_of()
    plain = farskip_compile.regional(copy.deepcopy(model), "none", inner="eager")
    seen: dict[str, list[torch.Tensor]] = {"none": [], "full": []}
    for name, run in (("none", plain.model), ("full", model)):
        if name == "full":
            farskip_compile.regional(model, "full", inner="eager")
        for layer in run.layers:
            layer.register_forward_hook(lambda _, args, out, name=name: seen[name].append(out * 1.0))
        with torch.no_grad():
            run(IDS)
    assert all(type(value) is torch.Tensor for value in seen["full"])
    assert [value.shape for value in seen["full"]] == [value.shape for value in seen["none"]]


# transformers


def qwen3(**settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3MoeConfig(
        num_hidden_layers=3, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2, vocab_size=32,
        experts_implementation="batched_mm", **settings,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).double()


def test_what_transformers_records() -> None:
    model = qwen3()
    form = GenericFarSkipForm(copy.deepcopy(model))
    farskip_compile.regional(model, "full", inner="eager")
    asked = {"use_cache": False, "output_hidden_states": True, "output_router_logits": True}
    with torch.no_grad():
        expected, found = form(input_ids=IDS, **asked), model(input_ids=IDS, **asked)
    assert torch.equal(found.logits, expected.logits)
    assert len(found.hidden_states) == len(expected.hidden_states) == 4
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(torch.add(one, 0.0), other)
    for one, other in zip(found.router_logits, expected.router_logits, strict=True):
        assert torch.equal(one, other)


def test_its_checkpointing() -> None:
    model = qwen3().train()
    form = GenericFarSkipForm(copy.deepcopy(model))
    loss = form(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    farskip_compile.regional(model, "full", inner="eager")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    found.backward()
    assert torch.equal(found, loss)


def test_generate_with_a_static_cache() -> None:
    model = qwen3().eval()
    form = GenericFarSkipForm(copy.deepcopy(model))
    farskip_compile.regional(model, "full", inner="eager")
    ids = IDS
    with torch.no_grad():
        found = model.generate(
            IDS,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            cache_implementation="static",
            disable_compile=True,
        )
        for _ in range(4):
            ids = torch.cat([ids, form(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(found, ids)
