# SPDX-License-Identifier: Apache-2.0
"""The backend as users call it: names, options, shapes, modes, training, checkpoints, autocast."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import farskip_compile
from farskip_compile import FarSkipConfig, Outcome, backend
from farskip_compile.models import FarSkipForm, build
from tests.compare import assert_gradients_close, relative_difference, run_with_gradients
from tests.economy import scalar_kernels

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "layers": ("dense", "moe", "moe")}


def ids(batch: int = 2, sequence: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 32, (batch, sequence), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> nn.Module:
    return build("deepseek_v3", dtype=torch.float64, **SMALL)


def test_is_listed_by_its_entry_point() -> None:
    assert "farskip" in torch._dynamo.list_backends()


def test_named_and_configured_backends_agree(model: nn.Module) -> None:
    expected = FarSkipForm(model)(ids())
    by_name = torch.compile(model, backend="farskip", options={"inner": "eager"})(ids())
    torch.compiler.reset()
    by_config = torch.compile(model, backend=backend(FarSkipConfig(inner="eager")))(ids())
    torch.compiler.reset()
    by_keyword = torch.compile(model, backend=backend(inner="eager"))(ids())
    assert all(torch.equal(output, expected) for output in (by_name, by_config, by_keyword))


def test_default_is_full_on_inductor() -> None:
    model = build("llama4", **{**SMALL, "layers": ("moe",)})
    with torch.no_grad():
        output = torch.compile(model, backend="farskip", fullgraph=True)(ids())
        torch.testing.assert_close(output, FarSkipForm(model)(ids()), rtol=1e-4, atol=1e-5)
    (report,) = farskip_compile.reports().compiles
    assert report.outcome is Outcome.REWIRED
    assert report.config["connectivity"] == "full"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_inference(model: nn.Module, mode: Any, inner: str) -> None:
    with mode():
        output = torch.compile(model, backend="farskip", fullgraph=True, options={"inner": inner})(ids())
        assert relative_difference(output, FarSkipForm(model)(ids())) <= (0.0 if inner == "eager" else 1e-12)


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_dynamic_shapes_do_not_recompile(inner: str) -> None:
    model = build("deepseek_v3", dtype=torch.float64, **{**SMALL, "layers": ("moe", "moe")})
    compiled = torch.compile(model, backend="farskip", fullgraph=True, dynamic=True, options={"inner": inner})
    reports = []
    for batch, sequence in ((2, 6), (3, 9)):
        x = ids(batch, sequence)
        assert relative_difference(compiled(x), FarSkipForm(model)(x)) < 1e-12
        reports.append(len(farskip_compile.reports().compiles))
    assert reports[0] == reports[-1] == 1


def test_marked_dimensions_train_without_recompiling() -> None:
    model = build("mixtral", dtype=torch.float64, **{**SMALL, "layers": ("moe", "moe")})
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "aot_eager"})
    for batch, sequence in ((2, 6), (3, 9)):
        x = ids(batch, sequence)
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(x, 1)
        expected, expected_gradients = run_with_gradients(FarSkipForm(model), model, ids(batch, sequence))
        output, gradients = run_with_gradients(compiled, model, x)
        assert relative_difference(output, expected) < 1e-12
        assert_gradients_close(gradients, expected_gradients, 1e-10)
    assert len(farskip_compile.reports().compiles) == 1


def test_dynamic_inductor_training() -> None:
    model = build("llama4", dtype=torch.float64, **{**SMALL, "layers": ("moe", "dense")})
    compiled = torch.compile(model, backend="farskip", fullgraph=True, dynamic=True)
    for batch, sequence in ((2, 6), (3, 9)):
        x = ids(batch, sequence)
        expected, expected_gradients = run_with_gradients(FarSkipForm(model), model, x)
        with scalar_kernels():
            output, gradients = run_with_gradients(compiled, model, x)
        assert relative_difference(output, expected) < 1e-10
        assert_gradients_close(gradients, expected_gradients, 1e-9)
    assert len(farskip_compile.reports().compiles) == 1  # Dynamo analysed twice (symbolic floats): one report


def test_bf16_autocast_bit_equal() -> None:
    model = build("deepseek_v3", **SMALL)
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager"})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, expected_gradients = run_with_gradients(FarSkipForm(model), model, ids())
        output, gradients = run_with_gradients(compiled, model, ids())
    assert torch.equal(output, expected)
    assert_gradients_close(gradients, expected_gradients, 1e-2)  # bf16 sums of a fan-out in another order


def test_autocast_inside_the_model_bit_equal() -> None:
    class Autocast(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.inner(x)

    model = build("mixtral", **SMALL)
    with torch.no_grad():
        output = torch.compile(Autocast(model), backend="farskip", fullgraph=True, options={"inner": "eager"})(ids())
        assert torch.equal(output, Autocast(FarSkipForm(model))(ids()))


def test_dropout_draws_the_same_numbers(model: nn.Module) -> None:
    model = build("deepseek_v3", dtype=torch.float64, dropout=0.3, **SMALL).train()
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager"})
    torch.manual_seed(5)
    expected, expected_gradients = run_with_gradients(FarSkipForm(model), model, ids())
    torch.manual_seed(5)
    output, gradients = run_with_gradients(compiled, model, ids())
    assert torch.equal(output, expected)
    assert_gradients_close(gradients, expected_gradients, 1e-12)


class Checkpointed(nn.Module):
    """A decoder whose layers are checkpointed one by one."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.decoder.token_embedding(x)
        rope = self.decoder.rope(hidden, hidden.shape[1])
        for layer in self.decoder.layers:
            hidden = checkpoint(layer, hidden, rope, use_reentrant=False)
        return self.decoder.lm_head(self.decoder.final_norm(hidden))


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_activation_checkpointing(inner: str) -> None:
    layers = ("moe",) if inner == "inductor" else ("dense", "moe", "moe")  # each kernel takes long to build
    model = build(
        "mixtral" if inner == "inductor" else "deepseek_v3", dtype=torch.float64, **{**SMALL, "layers": layers}
    )
    expected, expected_gradients = run_with_gradients(FarSkipForm(model), model, ids())
    compiled = torch.compile(Checkpointed(model), backend="farskip", fullgraph=True, options={"inner": inner})
    with scalar_kernels():
        output, gradients = run_with_gradients(compiled, model, ids())
    if inner == "eager":
        assert torch.equal(output, expected)
    assert relative_difference(output, expected) < 1e-10
    assert_gradients_close(gradients, expected_gradients, 1e-12 if inner == "eager" else 1e-9)
    assert farskip_compile.reports().compiles[-1].checkpoints_opened == len(layers)


class Written:
    """Python values that a layer writes."""

    calls = 0
    last: torch.Tensor | None = None


class Writing(Checkpointed):
    """A checkpointed decoder whose layers write to Python objects, as the attention of transformers 5.25 does."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__(decoder)
        self.written = Written()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def run(layer: nn.Module, hidden: torch.Tensor, rope: Any) -> torch.Tensor:
            self.written.calls += 1
            output = layer(hidden, rope)
            self.written.last = output.square().mean()
            return output

        hidden = self.decoder.token_embedding(x)
        rope = self.decoder.rope(hidden, hidden.shape[1])
        for layer in self.decoder.layers:
            hidden = checkpoint(run, layer, hidden, rope, use_reentrant=False)
        return self.decoder.lm_head(self.decoder.final_norm(hidden))


@pytest.mark.parametrize("fullgraph", [True, False])
def test_layers_that_write_inside_of_a_checkpoint(model: nn.Module, fullgraph: bool) -> None:
    streams: list[torch.Tensor] = []
    with model.final_norm.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0])):
        expected, expected_gradients = run_with_gradients(FarSkipForm(model), model, ids())
    writing = Writing(model)
    compiled = torch.compile(writing, backend="farskip", fullgraph=fullgraph, options={"inner": "aot_eager"})
    output, gradients = run_with_gradients(compiled, model, ids())
    assert relative_difference(output, expected) < 1e-14
    assert_gradients_close(gradients, expected_gradients, 1e-12)
    assert writing.written.calls == 3  # once for each layer: recomputation does not write again
    torch.testing.assert_close(writing.written.last, streams[0].square().mean(), rtol=1e-12, atol=0)
    assert farskip_compile.reports().compiles[-1].checkpoints_opened == 3


def test_other_backends_end_their_graph_at_such_a_checkpoint(model: nn.Module) -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Unsafe side effect"):
        torch.compile(Writing(model), backend="eager", fullgraph=True)(ids())


def backward_graph_nodes(model: nn.Module, target: nn.Module) -> int:
    """Number of nodes of the backward graph that the inner AOT backend compiles."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    sizes: list[int] = []
    inner = aot_autograd(
        fw_compiler=lambda gm, _: gm.forward,
        bw_compiler=lambda gm, _: (sizes.append(len(gm.graph.nodes)), gm.forward)[1],
        partition_fn=min_cut_rematerialization_partition,
    )

    def rewire_then(module: torch.fx.GraphModule, inputs: Any) -> Any:
        farskip_compile.compiler.pipeline.run(module, FarSkipConfig())
        return inner(module, inputs)

    torch.compiler.reset()
    run_with_gradients(torch.compile(target, backend=rewire_then, fullgraph=True), model, ids())
    return sizes[0]


def test_opened_checkpoints_still_recompute(model: nn.Module) -> None:
    plain, checkpointed = backward_graph_nodes(model, model), backward_graph_nodes(model, Checkpointed(model))
    assert checkpointed > 1.3 * plain
    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
        assert backward_graph_nodes(model, Writing(model)) >= checkpointed


def test_optimizer_steps_follow_the_oracle() -> None:
    losses: dict[str, list[float]] = {}
    for kind in ("oracle", "compiled"):
        model = build("mixtral", dtype=torch.float64, **SMALL)
        run = FarSkipForm(model) if kind == "oracle" else torch.compile(
            model, backend="farskip", fullgraph=True, options={"inner": "eager"}
        )  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses[kind] = []
        for step in range(5):
            x = ids(seed=step)
            loss = nn.functional.cross_entropy(run(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
            losses[kind].append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert losses["compiled"] == pytest.approx(losses["oracle"], rel=1e-9)
    assert losses["compiled"][-1] != losses["compiled"][0]


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_loss_and_sampler_graphs_pass_through(inner: str) -> None:
    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, target) + 1e-4 * logits.logsumexp(-1).square().mean()

    logits = torch.randn(4, 8)
    target = torch.arange(4)
    compiled = torch.compile(loss, backend="farskip", fullgraph=True, options={"inner": inner})
    torch.testing.assert_close(compiled(logits, target), loss(logits, target))
    assert farskip_compile.reports().compiles[-1].outcome is Outcome.NO_STACK


def test_unrelated_sums_pass_through() -> None:
    """An optimizer that multiplies matrices: many sums `p + f(p)`, no stream between them."""

    def update(weights: list[torch.Tensor], moment: torch.Tensor) -> list[torch.Tensor]:
        return [weight + weight @ (weight.mT @ moment).tanh() for weight in weights]

    weights = [torch.randn(8, 8) for _ in range(3)]
    moment = torch.randn(8, 8)
    compiled = torch.compile(update, backend="farskip", fullgraph=True, options={"inner": "eager"})
    assert all(map(torch.equal, compiled(weights, moment), update(weights, moment)))
    assert farskip_compile.reports().compiles[-1].outcome is Outcome.NO_STACK


def test_a_user_table(model: nn.Module) -> None:
    table = {"attention.2": ["r1"], "mlp.0": ["a0"], "moe.1": ["a1"], "moe.2": ["a2"]}
    options = {"connectivity": table, "inner": "eager"}
    output = torch.compile(model, backend="farskip", fullgraph=True, options=options)(ids())
    assert torch.equal(output, FarSkipForm(model)(ids()))


def test_farskip_form_is_recognised_and_left_alone(model: nn.Module) -> None:
    form = FarSkipForm(model)
    output = torch.compile(form, backend="farskip", fullgraph=True, options={"inner": "eager"})(ids())
    assert torch.equal(output, form(ids()))
    report = farskip_compile.reports().compiles[-1]
    assert report.outcome is Outcome.ALREADY
    assert report.wiring_before == report.wiring_after == "full"


def test_half_converted_model_is_completed(model: nn.Module) -> None:
    half = FarSkipForm(model, connectivity="attention")
    output = torch.compile(half, backend="farskip", fullgraph=True, options={"inner": "eager"})(ids())
    assert torch.equal(output, FarSkipForm(model)(ids()))
    assert farskip_compile.reports().compiles[-1].wiring_before == "attention"


def test_reports_of_two_compiles_are_both_kept(model: nn.Module) -> None:
    for _ in range(2):
        torch.compile(model, backend="farskip", options={"inner": "eager"})(ids())
        torch.compiler.reset()  # Dynamo's compile ids start anew
    assert len(farskip_compile.reports().compiles) == 2


def test_report_callback_json_log_and_trace(model: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[farskip_compile.CompileReport] = []
    with caplog.at_level(logging.INFO, logger="farskip_compile"):
        torch.compile(model, backend="farskip", options={"inner": "eager", "on_report": seen.append})(ids())
    assert seen == list(farskip_compile.reports().compiles)
    data = json.loads(json.dumps(seen[0].to_json()))
    rows = {row["name"]: row for row in data["sub_blocks"]}
    assert rows["attention.2"]["left_out"] == ["r1"]
    assert rows["attention.2"]["reads_after"] == ["e", "a0", "m0", "a1", "s1"]
    assert rows["moe.2"]["reads_after"] == ["e", "a0", "m0", "a1", "r1", "s1"]
    assert any("standard -> full, verified" in record.getMessage() for record in caplog.records)


def test_inductor_options_reach_forward_and_backward() -> None:
    """The pass is in force for both graphs, also the backward one, which is compiled later."""
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class Count(CustomGraphPass):
        graphs = 0

        def __call__(self, graph: torch.fx.Graph) -> None:
            Count.graphs += 1

        def uuid(self) -> str:
            return "count-graphs"

    model = build("llama4", **{**SMALL, "layers": ("moe",)})
    options = {"inductor": {"post_grad_custom_post_pass": Count(), "fx_graph_cache": False}}
    with scalar_kernels():
        output = torch.compile(model, backend="farskip", fullgraph=True, options=options)(ids())
        assert Count.graphs == 1
        output.sum().backward()
    assert Count.graphs == 2
