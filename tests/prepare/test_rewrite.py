# SPDX-License-Identifier: Apache-2.0
"""Loops of any module: rewritten where that is the same function, and left alone where not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import farskip_compile
from farskip_compile import prepare
from farskip_compile.tools.prepare import main
from farskip_compile.tools.prepare.captured import why_not_captured
from tests.handwritten.decoder import MLP, WIDTH, Decoder, farskip_form, token_ids
from tests.prepare.loop_styles import STYLES, Block, Capacity, Counted, Hit, Skips, Stacked


def results(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Outputs and gradients, in both modes; those without gradients give none."""
    found = []
    for mode in (True, False):
        model.train(mode)
        output = model(*inputs)
        found.append(output.detach())
        if output.requires_grad:
            parameters = list(model.parameters())
            found += torch.autograd.grad(output.square().sum(), parameters, allow_unused=True, materialize_grads=True)
    model.train()
    return found


def assert_equal(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    assert all(map(torch.equal, left, right))


def own_attributes(model: nn.Module) -> list[set[str]]:
    return [set(vars(part)) - {"_is_torch_compile"} for part in model.modules()]  # torch.compile sets that


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
def test_each_style_captures_and_is_the_form_by_hand(style: type[Block]) -> None:
    torch.manual_seed(0)
    model = Decoder(style, layers=2).double()
    expected, attributes = results(model, token_ids()), own_attributes(model)
    random_state = torch.get_rng_state()
    preparation = prepare(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not preparation.notes
    (change,) = preparation.changes
    assert change.what == "loop over experts in experts.0 and 1 more"
    assert model.training
    assert_equal(results(model, token_ids()), expected)
    assert not prepare(model).changes
    assert_is_the_form_by_hand(model)
    preparation.undo()
    assert own_attributes(model) == attributes
    assert_equal(results(model, token_ids()), expected)


def assert_is_the_form_by_hand(model: Decoder) -> None:
    """To the last bit, in evaluation mode: the branch in which the styles differ most."""
    torch.compiler.reset()
    model.eval()
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager"})
    output = compiled(token_ids())
    assert torch.equal(output, farskip_form(model, token_ids()))
    assert not torch.equal(output, model(token_ids()))
    model.train()


def test_what_is_said_of_a_change() -> None:
    (change,) = prepare(Counted()).changes
    assert "bincount, whose length depends on data (line " in change.before
    assert change.after == "counts by a sum of fixed length; does not ask for tokens"
    (change,) = prepare(Hit()).changes
    assert change.after == "over all 4 experts"


def test_a_module_alone_is_tried_with_random_rows() -> None:
    module = Skips().double()
    assert prepare(module).changes
    x = torch.randn(2, 5, WIDTH).double()
    torch.compiler.reset()
    assert torch.equal(torch.compile(module, backend="eager", fullgraph=True)(x), module(x))


def test_undo_and_an_error_in_the_example_call() -> None:
    """What was installed is removed if the call with the example inputs fails."""
    model = Decoder(Skips)
    attributes = own_attributes(model)
    with pytest.raises(IndexError):
        prepare(model, torch.tensor([[10**6]]))
    assert own_attributes(model) == attributes


def test_hooks_and_attributes_are_not_touched() -> None:
    class Counting(Skips):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x
            return super().forward(x)

    seen: list[object] = []
    model = Decoder([Skips, Counting], layers=2)
    for part in model.modules():
        part.register_forward_hook(lambda module, args, output: seen.append(module))
    gradients = [p.grad for p in model.parameters()]
    prepare(model)
    assert seen == []
    assert model.experts[1].calls == 0
    assert not hasattr(model.experts[1], "last")
    assert [p.grad for p in model.parameters()] == gradients


# what is not the same function


class Adds(Block):
    """Does something for experts without tokens."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        _, chosen = self.choose(x)
        for e, expert in enumerate(self.experts):
            mask = (chosen == e).any(-1)
            if not mask.any():
                y = y + 0.1
                continue
            y[mask] += expert(x[mask])
        return y


class Few(Block):
    """Skips experts with few tokens, too."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        _, chosen = self.choose(x)
        for e, expert in enumerate(self.experts):
            mask = (chosen == e).any(-1)
            if mask.sum() < 2:
                continue
            y[mask] += expert(x[mask])
        return y


class Never(Block):
    """A bound that no input reaches: what happens beyond it can't be seen."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        _, chosen = self.choose(x)
        for e, expert in enumerate(self.experts):
            mask = (chosen == e).any(-1)
            if mask.sum() > 1000000:
                continue
            y[mask] += expert(x[mask])
        return y


class Normed(Skips):
    """Experts that count how often they run."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Sequential(nn.BatchNorm1d(WIDTH), MLP()) for _ in range(4)])


class Fading(Stacked):
    """Each expert that is hit does something to the others' output."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        y = torch.zeros_like(flat)
        _, chosen = self.choose(flat)
        for e in chosen.unique():
            idx, _ = torch.where(chosen == e)
            y = (y * 0.9).index_add(0, idx, flat[idx] @ self.w[e.item()])
        return y.view_as(x)


class Draws(Block):
    """Draws random numbers for experts without tokens."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        _, chosen = self.choose(x)
        for e, expert in enumerate(self.experts):
            mask = (chosen == e).any(-1)
            if not mask.any():
                continue
            y[mask] += expert(x[mask]) + torch.rand(())
        return y


class Ends(Block):
    """Leaves the loop at the first expert without tokens."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        _, chosen = self.choose(x)
        for e, expert in enumerate(self.experts):
            mask = (chosen == e).any(-1)
            if not mask.any():
                break
            y[mask] += expert(x[mask])
        return y


class Both(Block):
    """Asks two things at once."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        _, chosen = self.choose(x)
        for e, expert in enumerate(self.experts):
            mask = (chosen == e).any(-1)
            if mask.any() and mask.sum() < 1000000:
                y[mask] += expert(x[mask])
        return y


class Pairs(Block):
    """A loop over hits with more than them."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        _, chosen = self.choose(x)
        for place, e in enumerate(chosen.unique().tolist()):
            mask = (chosen == e).any(-1)
            y[mask] += self.experts[e](x[mask]) / (place + 1)
        return y


@pytest.mark.parametrize(
    ("style", "reason"),
    [
        (Adds, "gives other outputs in evaluation mode"),
        (Few, "gives other outputs in evaluation mode"),
        (Never, "no input left an expert without tokens"),
        (Normed, "gives other state in training mode"),
        (Fading, "gives other outputs in evaluation mode"),
        (Both, "a test of data in a form that is not known"),
        (Draws, "gives other outputs in evaluation mode"),
        (Ends, "an empty selection ends the loop"),
        (Pairs, "a loop over what occurs in data, with more than that element"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_is_not_the_same_function_is_left_alone(style: type[Block], reason: str) -> None:
    torch.manual_seed(0)
    module = style().double()
    attributes = own_attributes(module)
    preparation = prepare(module)
    assert not preparation.changes
    assert own_attributes(module) == attributes
    (note,) = preparation.notes
    assert reason in note
    assert "test_rewrite.py:" in note or "loop_styles.py:" in note  # the line that can't be captured


def test_what_captures_already_is_left_alone() -> None:
    class Free(Block):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(0, 1)
            weights, chosen = self.choose(flat)
            y = torch.zeros_like(flat)
            counts = []
            for e, expert in enumerate(self.experts):
                idx, k = torch.where(chosen == e)
                y[idx] += weights[idx, k, None] * expert(flat[idx])
                counts.append(flat.shape[0])
                if len(counts) > 2:
                    counts = counts[1:]
            return y.view_as(x)

    preparation = prepare(Free())
    assert (preparation.changes, preparation.notes) == ((), ())


class TwoInputs(Skips):
    """Takes more than rows."""

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            idx, _ = torch.where(chosen == e)
            if len(idx) == 0:
                continue
            y[idx] += expert(x[idx])
        return y


def test_example_inputs_are_used() -> None:
    (note,) = prepare(TwoInputs()).notes
    assert "pass example inputs" in note
    x, chosen = torch.randn(6, WIDTH), torch.randint(0, 4, (6, 2))
    (change,) = prepare(TwoInputs(), x, chosen).changes
    assert change.after == "does not ask for tokens"


def test_models_without_values_are_left_alone() -> None:
    with torch.device("meta"):
        model = Decoder(Skips)
    (note,) = prepare(model).notes
    assert "meta device" in note


def test_modules_that_differ_in_a_number_are_judged_apart() -> None:
    model = Decoder([Capacity, Adds], layers=2)
    preparation = prepare(model)
    assert [change.what for change in preparation.changes] == ["loop over experts in experts.0"]
    (note,) = preparation.notes
    assert note.startswith("loop over experts in experts.1:")


def test_no_code_of_a_model_without_loops_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(Block):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    monkeypatch.setattr(main.sys, "modules", {})
    assert not prepare(Decoder(Plain)).notes


def test_a_shape_that_depends_on_data_is_a_refusal_with_its_line() -> None:
    """Where shapes are computed, Dynamo raises an error that is none of its own."""
    refusal = farskip_compile.explain(Decoder(Counted), token_ids()).refusal
    assert refusal is not None
    assert "loop_styles.py:" in refusal.where
    assert "farskip_compile.prepare(model)" in refusal.way_out
    with pytest.raises(farskip_compile.errors.ManifestError, match="depends on values"):
        farskip_compile.describe(Decoder(Counted), token_ids())


def test_modules_of_one_class_are_asked_about_one_by_one() -> None:
    """More of them than Dynamo compiles one function for: each has a shape of its own, and may have another answer."""
    with torch._dynamo.config.patch(recompile_limit=2):
        for width in range(2, 8):
            assert why_not_captured(nn.Linear(width, width), (torch.zeros(1, width),), {}) is None
        assert torch._dynamo.config.recompile_limit == 2
