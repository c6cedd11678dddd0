# SPDX-License-Identifier: Apache-2.0
"""Experts with a loop of their own: what computes the same becomes the interface's kernel, the rest is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import farskip_compile
from farskip_compile import Outcome, prepare
from farskip_compile.models.generic_form import GenericFarSkipForm
from tests.compare import relative_difference
from tests.models.test_transformers import COMMON, compiled, ids, seeded
from tests.prepare.test_prepare import FLOAT32_ROUNDING, captures, logits, longcat, whats

transformers = pytest.importorskip("transformers")


class LoopedExperts(nn.Module):
    """Experts with weights as the interface has them, and a loop that takes each index behind theirs as an identity."""

    def __init__(self, hidden: int, inner: int, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.act_fn = nn.SiLU()
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        total = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            rows, place = torch.where(top_k_index == expert)
            output = hidden_states[rows]
            if expert < self.experts:
                gate, up = nn.functional.linear(output, self.gate_up_proj[expert]).chunk(2, dim=-1)
                output = nn.functional.linear(self.act_fn(gate) * up, self.down_proj[expert])
            total.index_add_(0, rows, output * top_k_weights[rows, place, None])
        return total


class LoopedMoe(nn.Module):
    """A router over four experts and some identities, in front of `LoopedExperts`."""

    def __init__(self, identities: int) -> None:
        super().__init__()
        hidden = COMMON["hidden_size"]
        self.router = nn.Linear(hidden, 4 + identities, bias=False)
        self.experts = LoopedExperts(hidden, 32, experts=4)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.flatten(0, -2)
        weights, index = self.router(rows).softmax(-1).topk(2, dim=-1)
        return self.experts(rows, index, weights).view_as(hidden_states)


def looped(identities: int = 2, layers: int = 2) -> nn.Module:
    """Return a model with a shortcut around each MoE layer, whose experts are `LoopedExperts`."""
    model = longcat(layers=layers)
    generator = torch.Generator().manual_seed(2)
    for layer in model.model.layers:
        layer.mlp = LoopedMoe(identities).eval()
        for parameter in layer.mlp.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


@pytest.mark.parametrize("identities", [0, 2])
def test_a_loop_becomes_the_kernel_that_computes_the_same(identities: int) -> None:
    model = looped(identities, layers=1)
    expected = logits(model)
    assert not captures(model)
    preparation = prepare(model)
    (change,) = [change for change in preparation.changes if "loop" in change.what]
    assert change.what == "loop over experts in model.layers.0.mlp.experts"
    assert change.after.endswith("4 experts and any number of identities")
    assert captures(model)
    assert relative_difference(logits(model), expected) < FLOAT32_ROUNDING
    preparation.undo()
    assert torch.equal(logits(model), expected)


def test_a_replaced_loop_is_one_routed_term_in_a_shortcut() -> None:
    """Identities too are routed: an expert without computation that stood apart would count as shared."""
    model = looped().double()
    prepare(model)
    tokens = ids()
    chosen = []
    for layer in model.model.layers:
        layer.mlp.experts.register_forward_pre_hook(lambda module, args: chosen.append(args[1]))
    model(tokens)
    assert all({True, False} == set((index >= 4).flatten().tolist()) for index in chosen)  # both kinds are used
    for layer in model.model.layers:
        layer.mlp.experts._forward_pre_hooks.clear()
    compiled(model)(tokens)
    (report,) = farskip_compile.reports().compiles
    assert report.outcome is Outcome.ALREADY
    assert report.wiring_before == "shortcut MoE"  # overlapped by design
    assert [name for name in report.terms if name[0] in "rs"] == ["r1", "r3"]


def test_a_copy_of_a_prepared_model_uses_its_own_weights() -> None:
    model = looped()
    prepare(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    prepare(fresh := looped())
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(logits(other), logits(fresh))
    assert not torch.equal(logits(other), logits(model))


def test_a_loop_over_experts_that_store_weights_otherwise_is_rewritten() -> None:
    """Dbrx: matrices of all experts one below the other, in a module of their own, gate and up apart. The attention and
    the norm of the experts share a module, which the oracle has to open."""
    config = transformers.DbrxConfig(
        d_model=32,
        n_heads=2,
        n_layers=2,
        vocab_size=128,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    )
    model = seeded(transformers.DbrxForCausalLM, config).double()
    expected = logits(model)
    preparation = prepare(model)
    (change,) = [change for change in preparation.changes if "loop" in change.what]
    assert change.what == "loop over experts in transformer.blocks.0.ffn.experts and 1 more"
    assert change.after == "over all 4 experts"
    assert not preparation.notes
    assert torch.equal(logits(model), expected)
    with torch.no_grad():
        rewired = compiled(model)(ids()).logits
        assert torch.equal(rewired, GenericFarSkipForm(model)(ids()).logits)
    assert not torch.equal(rewired, expected)


class Loop(nn.Module):
    """Experts of the interface with a loop; subclasses change what happens in it."""

    def __init__(self, experts: int = 3, transposed: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.transposed, self.act_fn = transposed, nn.SiLU()
        up, down = (8, 6), (6, 4)
        self.gate_up_proj = nn.Parameter(torch.randn(experts, *(up[::-1] if transposed else up)))
        self.down_proj = nn.Parameter(torch.randn(experts, *(down[::-1] if transposed else down)))
        if bias:
            self.gate_up_proj_bias = nn.Parameter(torch.randn(experts, 8))
            self.down_proj_bias = nn.Parameter(torch.randn(experts, 6))

    def linear(self, x: torch.Tensor, name: str, expert: int) -> torch.Tensor:
        weight = getattr(self, name)[expert]
        bias = getattr(self, name + "_bias", None)
        return x @ (weight if self.transposed else weight.T) + (0 if bias is None else bias[expert])

    def expert(self, x: torch.Tensor, number: int) -> torch.Tensor:
        gate, up = self.linear(x, "gate_up_proj", number).chunk(2, dim=-1)
        return self.linear(self.act_fn(gate) * up, "down_proj", number)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        result = torch.zeros_like(hidden_states)
        for number in top_k_index.unique().tolist():
            token, position = torch.where(top_k_index == number)
            output = self.expert(hidden_states[token], number) * top_k_weights[token, position, None]
            result = result.index_add(0, token, output)
        return result


class Skipping(Loop):
    """Leaves out what is routed to an index without weights."""

    def expert(self, x: torch.Tensor, number: int) -> torch.Tensor:
        return super().expert(x, number) if number < len(self.down_proj) else torch.zeros_like(x)


def test_indices_without_weights_are_left_out_as_the_loop_leaves_them_out() -> None:
    module = Skipping().double()
    index = torch.tensor([[0, 3], [4, 1], [2, 0], [3, 4], [1, 2]])
    args = torch.randn(5, 6).double(), index, torch.rand(5, 2).double()
    expected = module(*args)
    assert "loop over experts in the model itself" in whats(prepare(module))
    torch.testing.assert_close(module(*args), expected)


class Limited(Loop):
    """Differs for large values only."""

    def expert(self, x: torch.Tensor, number: int) -> torch.Tensor:
        return super().expert(x, number).clamp(max=50.0)


class OneSpecial(Loop):
    """Differs for one expert only."""

    def expert(self, x: torch.Tensor, number: int) -> torch.Tensor:
        return super().expert(x, number) * (1.001 if number == 1 else 1)


class Dropping(Loop):
    """Differs in training only."""

    def expert(self, x: torch.Tensor, number: int) -> torch.Tensor:
        return nn.functional.dropout(super().expert(x, number), 0.5, self.training)


class Detached(Loop):
    """Differs in gradients only."""

    def expert(self, x: torch.Tensor, number: int) -> torch.Tensor:
        return super().expert(x.detach(), number)


class OwnGate(Loop):
    """The same function, with the interface's method for the gate."""

    def expert(self, x: torch.Tensor, number: int) -> torch.Tensor:
        return self.linear(self._apply_gate(self.linear(x, "gate_up_proj", number)), "down_proj", number)

    def _apply_gate(self, gate_and_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_and_up.chunk(2, dim=-1)
        return torch.tanh(gate).clamp(max=0.5) * up


class Extra(Loop):
    """Has a weight that the interface does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))


class Reading(Loop):
    """Can't run on other weights than its own."""

    def expert(self, x: torch.Tensor, number: int) -> torch.Tensor:
        return super().expert(x.view(-1, 6), number)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [Loop, OwnGate])
def test_layouts_are_found(kind: type[Loop], transposed: bool, bias: bool) -> None:
    module = kind(transposed=transposed, bias=bias).double()
    args = torch.randn(7, 6).double(), torch.stack([torch.arange(7) % 3, (torch.arange(7) + 1) % 3], 1)
    weights = torch.rand(7, 2).double()
    expected = module(*args, weights)
    assert "loop over experts in the model itself" in whats(prepare(module))
    torch.testing.assert_close(module(*args, weights), expected)
    torch.compile(module, backend="eager", fullgraph=True)(*args, weights)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Limited, "gives other outputs in evaluation mode"),
        (OneSpecial, "gives other outputs in evaluation mode"),
        (Dropping, "gives other outputs in training mode"),
        (Detached, "gives other gradients in evaluation mode"),
        (Extra, "weights that the interface does not know: scale"),
        (Reading, "on random weights, it could not be run"),
    ],
)
def test_what_is_not_the_same_function_is_left_alone(kind: type[Loop], reason: str) -> None:
    module = kind().eval()
    random_state = torch.get_rng_state()
    preparation = prepare(module)
    assert not preparation.changes
    (note,) = preparation.notes
    assert reason in note
    assert note in " ".join(str(preparation).split())
    assert "forward" not in vars(module)
    assert not module.training
    assert torch.equal(torch.get_rng_state(), random_state)
