# SPDX-License-Identifier: Apache-2.0
"""The values of options with fixed values are those that the functions they go to take."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from farskip_compile.cli import choices
from farskip_compile.compiler.config.checks import Inner
from farskip_compile.healing.distill.config import Precision
from farskip_compile.healing.heal.settings import DTYPES, RecipeName
from farskip_compile.healing.texts.loaders import LossOn
from farskip_compile.measure.simulate.scenario import ExpertExchange, Phase, ProductDtype
from farskip_compile.passes.rewire.request import Named
from farskip_compile.vllm.compare import TOLERANCE


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        (choices.Connectivity, get_args(Named)),
        (choices.Rewired, set(get_args(Named)) - {"none"}),
        (choices.Phase, [one.value for one in Phase]),
        (choices.Exchange, get_args(ExpertExchange)),
        (choices.Products, get_args(ProductDtype)),
        (choices.Recipe, get_args(RecipeName)),
        (choices.LossOn, get_args(LossOn)),
        (choices.Inner, get_args(Inner)),
        (choices.Trained, DTYPES),
        (choices.Trained, get_args(Precision)),
        (choices.Served, TOLERANCE),
        (choices.Part, ("compute", "links")),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_values(offered, taken):
    assert sorted(one.value for one in offered) == sorted(taken)


def test_types():
    for one in choices.Float:
        assert getattr(torch, one.value).is_floating_point
    assert [one.value for one in choices.Loaded] == ["auto", *(one.value for one in choices.Float)]


def test_in_a_sentence():
    assert choices.among(choices.Recipe) == "best, default or paper"
    assert choices.among(choices.Part) == "compute or links"
