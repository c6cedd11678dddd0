# SPDX-License-Identifier: Apache-2.0
"""The losses, against their definitions."""

from __future__ import annotations

import pytest
import torch

from farskip_compile.healing.causal.batches import IGNORED
from farskip_compile.healing.causal.losses import agreement, forward_kl, next_token_loss
from farskip_compile.healing.causal.teacher import TopLogits


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 11, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    targets = torch.randint(0, 11, (2, 4), generator=generator)
    targets[0, 1] = targets[1, 3] = IGNORED
    return student, teacher, targets


def positions(targets):
    return [(row, t) for row in range(2) for t in range(4) if targets[row, t] != IGNORED]


def test_forward_kl_is_its_definition(case):
    student, teacher, targets = case
    total = 0.0
    for row, t in positions(targets):
        p, q = teacher[row, t].softmax(-1), student[row, t].softmax(-1)
        total += float((p * (p / q).log()).sum())
    assert forward_kl(student, teacher, targets).item() == pytest.approx(total, rel=1e-12)
    assert forward_kl(teacher, teacher, targets).item() == 0.0


def test_of_the_largest_logits_the_rest_is_one_outcome(case):
    student, teacher, targets = case
    total = 0.0
    for row, t in positions(targets):
        p, q = teacher[row, t].softmax(-1), student[row, t].softmax(-1)
        kept = p.topk(3).indices
        p, q = (torch.cat([one[kept], (1 - one[kept].sum()).view(1)]) for one in (p, q))
        total += float((p * (p / q).log()).sum())
    top = TopLogits.of(teacher, 3)
    assert top.values.shape == top.indices.shape == (2, 4, 3)
    assert forward_kl(student, top, targets).item() == pytest.approx(total, rel=1e-5)
    assert forward_kl(student, top, targets) < forward_kl(student, teacher, targets)
    whole = forward_kl(student, TopLogits.of(teacher, 11), targets)
    assert whole.item() == pytest.approx(forward_kl(student, teacher, targets).item(), rel=1e-5)


def test_a_certain_teacher_has_no_rest(case):
    """Its rest has probability 0, of which no logarithm may become infinite, nor a gradient."""
    student, teacher, targets = case
    certain = torch.zeros_like(teacher).index_fill(-1, torch.tensor([3]), 1000.0)
    student = student.requires_grad_()
    loss = forward_kl(student, TopLogits.of(certain, 2), targets)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert loss.item() == pytest.approx(forward_kl(student, certain, targets).item(), rel=1e-5)


def test_next_token_loss_and_agreement(case):
    student, teacher, targets = case
    logs = [float(student[row, t].log_softmax(-1)[targets[row, t]]) for row, t in positions(targets)]
    assert next_token_loss(student, targets).item() == pytest.approx(-sum(logs), rel=1e-12)
    same = sum(int(student[row, t].argmax() == teacher[row, t].argmax()) for row, t in positions(targets))
    assert agreement(student, teacher, targets).item() == same
    assert agreement(student, TopLogits.of(teacher, 2), targets).item() == same
    assert agreement(teacher, teacher, targets).item() == len(positions(targets))


def test_low_precision_is_summed_in_float32(case):
    student, teacher, targets = case
    low = forward_kl(student.bfloat16(), teacher.bfloat16(), targets)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(forward_kl(student, teacher, targets).item(), rel=3e-2)
