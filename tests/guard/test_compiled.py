# SPDX-License-Identifier: Apache-2.0
"""A model that is compiled in place, and each way in which PyTorch runs it uncompiled: an error for weights of the
rewired form, one warning for others, and `status` says so. The class of fault: the original function without a word."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import farskip_compile
from farskip_compile import FarSkipWarning, OriginalWiringError
from farskip_compile.tools.status import Answer
from tests.graphs import Layer, MoE, Stack, ids

EAGER: dict[str, Any] = {"inner": "eager"}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    with torch.no_grad():
        yield
    torch.compiler.reset()


def compiled(*, ran: bool = True, **options: Any) -> Stack:
    model = Stack(lambda: Layer(MoE()), layers=2)
    model.compile(backend="farskip", fullgraph=True, options=EAGER | options)
    if ran:
        model(ids())
    return model


class Outer(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids) * 2


def loaded(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def under(stance: str, inputs: torch.Tensor) -> Callable[[nn.Module], Any]:
    def run(model: nn.Module) -> Any:
        with torch.compiler.set_stance(stance):
            return model(inputs)

    return run


LONGER = ids().repeat(1, 2)
WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": lambda model: copy.deepcopy(model)(ids()),
    "AveragedModel": lambda model: AveragedModel(model)(ids()),
    "torch.save": lambda model: loaded(model)(ids()),
    "forward": lambda model: model.forward(ids()),
    "another backend around it": lambda model: torch.compile(Outer(model), backend="eager")(ids()),
    "another backend of its forward": lambda model: torch.compile(model.forward, backend="eager")(ids()),
    "export": lambda model: torch.export.export(model, (ids(),), strict=False),
    "strict export": lambda model: torch.export.export(model, (ids(),), strict=True),
    "its forward disabled": lambda model: torch.compiler.disable(model.forward)(ids()),
    "force_eager": under("force_eager", ids()),
    "eager_on_recompile": under("eager_on_recompile", LONGER),
}
TAKEN_OUT: dict[str, Callable[[Any], Any]] = {
    "another backend of it": lambda model: torch.compile(model, backend="eager")(ids()),
    "disabled": lambda model: torch.compiler.disable(model)(ids()),
    "disabled alone": lambda model: torch.compiler.disable(model, recursive=False)(ids()),
    "disabled, in a decorator": lambda model: torch.compiler.disable()(model)(ids()),
}
"""They take the model out of what `torch.compile(model)` returned; one that is compiled in place runs rewired."""
REWIRED: dict[str, Callable[[Any], Any]] = {
    **TAKEN_OUT,
    "the model": lambda model: model(ids()),
    "uncompiled around it": lambda model: Outer(model)(ids()) / 2,
    "this backend around it": lambda model: torch.compile(Outer(model), backend="farskip", options=EAGER)(ids()) / 2,
    "functional_call": lambda model: torch.func.functional_call(model, dict(model.named_parameters()), (ids(),)),
    "eager_on_recompile of what is compiled": under("eager_on_recompile", ids()),
    "a copy that is compiled": lambda model: recompiled(copy.deepcopy(model))(ids()),
    "a pickle that is compiled": lambda model: recompiled(loaded(model))(ids()),
}


def recompiled(model: nn.Module) -> nn.Module:
    model.compile(backend="farskip", fullgraph=True, options=EAGER)
    return model


@pytest.mark.parametrize("way", WAYS)
def test_rewired_weights_in_the_original_wiring_are_an_error(way: str) -> None:
    model = compiled()
    for _ in range(2):
        with pytest.raises(OriginalWiringError, match=r"a Stack .* its weights are for the rewired form") as caught:
            WAYS[way](model)
    assert "farskip_compile.unguard(model)" in caught.value.way_out
    assert farskip_compile.status(model).answer is not Answer.NOT_REWIRED  # none of these calls has run


@pytest.mark.parametrize("way", ["deepcopy", "forward", "another backend around it", "force_eager"])
def test_other_weights_are_one_warning_and_status_says_so(way: str) -> None:
    model = compiled(ran=False)
    plain = copy.deepcopy(model)
    farskip_compile.unguard(plain)
    with pytest.warns(FarSkipWarning, match=r"a Stack .* is about to run in its original wiring:") as caught:
        found = WAYS[way](model)
    assert len(caught) == 1
    assert torch.equal(found, WAYS[way](plain))
    answers = farskip_compile.status(model)
    assert (answers.answer is Answer.NOT_REWIRED) == (way != "deepcopy")  # the copy ran, not the model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if way != "deepcopy":  # each copy is another model
            WAYS[way](model)


def test_without_strict_it_is_a_warning() -> None:
    model = compiled(strict=False)
    with pytest.warns(FarSkipWarning, match="its weights are for the rewired form"):
        model.forward(ids())
    found = farskip_compile.status(model)
    assert found.answer is Answer.NOT_REWIRED
    assert "1 call ran as it is written" in found.why


@pytest.mark.parametrize("way", REWIRED)
def test_what_runs_rewired_says_nothing(way: str) -> None:
    model = compiled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(REWIRED[way](model), model(ids()))
    assert farskip_compile.status(model).rewired


def test_options_that_keep_the_function_say_nothing() -> None:
    model = compiled(connectivity="none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(copy.deepcopy(model)(ids()), model.forward(ids()))


def test_a_teacher_is_a_warning_and_an_average_is_an_error() -> None:
    """Both are copies from before the first step. What the model is trained to goes into the average alone."""
    model = compiled(ran=False)
    teacher, average = copy.deepcopy(model), AveragedModel(model)
    model(ids())
    average.update_parameters(model)
    with pytest.warns(FarSkipWarning, match="original wiring"):
        teacher(ids())
    with pytest.raises(OriginalWiringError, match="its weights are for the rewired form"):
        average(ids())
    average.module.compile(backend="farskip", fullgraph=True, options=EAGER)
    assert torch.equal(average(ids()), model(ids()))


def test_the_guard_costs_no_graph_break_and_no_recompile() -> None:
    model, plain = compiled(), Stack(lambda: Layer(MoE()), layers=2)
    reports = len(farskip_compile.reports().compiles)
    for _ in range(2):
        model(ids())
        copy.deepcopy(model)
    assert len(farskip_compile.reports().compiles) == reports
    plain.load_state_dict(model.state_dict())
    assert torch.equal(torch.compile(plain, backend="farskip", fullgraph=True, options=EAGER)(ids()), model(ids()))


def test_unguarded_it_is_nobodys_but_the_users() -> None:
    model = compiled()
    other = copy.deepcopy(model)
    farskip_compile.unguard(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other(ids())
    assert "forward" not in vars(other)
    assert farskip_compile.status(other).answer is Answer.NOT_REWIRED


@pytest.mark.parametrize("strict", [True, False])
def test_wrappers(strict: bool) -> None:
    """Wrappers are compiled again, traced through by another backend, or kept from compiling."""
    model = Stack(lambda: Layer(MoE()), layers=2)
    wrapper = torch.compile(model, backend="farskip", fullgraph=True, options={**EAGER, "strict": strict})
    assert torch.equal(wrapper(ids()), torch._dynamo.run(wrapper)(ids()))
    for name, way in {**WAYS, **TAKEN_OUT}.items():
        if name in ("deepcopy", "AveragedModel", "torch.save", "forward", "strict export"):
            continue
        if strict:
            with pytest.raises(OriginalWiringError, match="original wiring"):
                way(wrapper)
        else:
            way(wrapper)
    assert farskip_compile.status(wrapper).rewired == strict
    for copied in (copy.deepcopy(wrapper), loaded(wrapper)):
        assert torch.equal(copied(ids()), wrapper(ids()))
        with pytest.raises(OriginalWiringError) if strict else nullcontext():
            torch.compiler.disable(copied.forward)
    model(ids())  # the model in it is nobody's but the user's
