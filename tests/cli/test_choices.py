# SPDX-License-Identifier: Apache-2.0
"""The values of options with fixed values: each list is written once, in `farskip_compile.base.choices`."""

from __future__ import annotations

from typing import get_args

import torch

from farskip_compile.base import choices
from farskip_compile.cli.evaluate import Loaded
from farskip_compile.cli.options import among
from farskip_compile.vllm.compare import TOLERANCE


def test_types_are_those_of_torch() -> None:
    for literal in (choices.FloatDtype, choices.TrainingDtype, choices.ServedDtype):
        assert all(getattr(torch, name).is_floating_point for name in get_args(literal))
    assert set(get_args(Loaded)) == {"auto", *get_args(choices.FloatDtype)}


def test_every_served_type_has_a_tolerance() -> None:
    assert set(get_args(choices.ServedDtype)) == set(TOLERANCE)


def test_lists_are_parts_of_each_other() -> None:
    assert set(get_args(choices.ConnectivityName)) == {*get_args(choices.Rewiring), "none"}
    assert set(get_args(choices.HealRecipe)) == {"best", *get_args(choices.DistillRecipe)}


def test_in_a_sentence() -> None:
    assert among(choices.HealRecipe) == "best, default or paper"
    assert among(choices.LossOn) == "all or assistant"
