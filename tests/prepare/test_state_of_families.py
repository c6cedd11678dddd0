# SPDX-License-Identifier: Apache-2.0
"""`prepare` changes no bit of the state of any family of the zoo, with example inputs and without.

Class of fault: a probe runs the user's modules, and a family does something in its forward that no probe expects.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from farskip_compile import prepare
from farskip_compile.tools.zoo import build_tiny, moe_families
from tests.state import everything_of

FAMILIES = {family.model_type: family for family in moe_families() if family.reason is None}


FEW = [name for name in ("deepseek_v3", "longcat_flash") if name in FAMILIES]


@pytest.mark.parametrize("name", FEW)
def test_every_bit_is_what_it_was(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", sorted({*FAMILIES} - {*FEW}))
def test_all_other_families(name: str) -> None:
    check(name)


def check(name: str) -> None:
    model = build_tiny(FAMILIES[name]).train()
    ids = torch.randint(0, 128, (2, 10), generator=torch.Generator().manual_seed(0))
    before = everything_of(model)
    prepare(model).undo()
    assert everything_of(model) == before
    prepare(model, ids).undo()
    after = everything_of(model)  # what a first call makes on the side, in attributes, stays
    assert {key: after[key] for key in before if ": " not in key} == {k: v for k, v in before.items() if ": " not in k}
