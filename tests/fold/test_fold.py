"""The fold of a whole model, against one by hand."""

from __future__ import annotations

import copy

import pytest
import torch

from farskip_compile.fold import fold
from tests.compare import relative_difference
from tests.fold import by_hand

SHAPE = (4, 16)


def batches(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, by_hand.VOCABULARY, SHAPE, generator=generator) for _ in range(count)]


CALIBRATION, HELD_OUT = batches(6, 1), batches(3, 2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_the_fold_by_hand(seed):
    model = by_hand.Model(seed)
    teacher = copy.deepcopy(model)
    wanted, verdicts = by_hand.folded(model, CALIBRATION, HELD_OUT)
    done = fold(model, CALIBRATION, held_out=HELD_OUT, outputs=False)
    assert [read.row for read in done.reads] == ["moe.0", "attention.1", "moe.1", "attention.2", "moe.2"]
    assert [read.accepted for read in done.reads] == verdicts
    assert True in verdicts
    for name, value in model.state_dict().items():
        assert relative_difference(value, wanted.state_dict()[name]) < 1e-8, name
    assert done.kl_before == pytest.approx(by_hand.kl(teacher, teacher, HELD_OUT), rel=1e-5)
    assert done.kl_after == pytest.approx(by_hand.kl(teacher, model, HELD_OUT), rel=1e-5)
    assert done.tokens == 6 * 4 * 15
