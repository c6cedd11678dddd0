# SPDX-License-Identifier: Apache-2.0
"""What an evaluation says of each sequence, and the standard error of a difference."""

from __future__ import annotations

import json
import math

import pytest
import torch

from farskip_compile import ConfigError
from farskip_compile.healing.causal.batches import as_batch
from farskip_compile.healing.causal.evaluate import Evaluation, HeldOut, paired
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.causal.teacher import FrozenTeacher
from tests.distill.common import batches, small

CPU = torch.device("cpu")


def of(sums, targets):
    table = torch.zeros(4, len(sums), dtype=torch.float64)
    table[0], table[3] = torch.tensor(sums), torch.tensor(targets)
    return HeldOut(sum(sums) / sum(targets), None, None, table)


def test_sums_of_sequences():
    model, teacher = small(), small(seed=1)
    first, second = batches(2)
    labels = first.clone()
    labels[1, 3:] = -100
    given = [as_batch({"input_ids": first, "labels": labels}, CPU), as_batch(second, CPU)]
    found = Evaluation(given, FrozenTeacher(teacher), TrainingRanks(model))(
        lambda one: model(one.inputs["input_ids"]), model
    )
    assert found.per_sequence[3].tolist() == [5, 2, 5, 5]
    with torch.no_grad():
        for column, (ids, count) in enumerate([(first[0], 5), (first[1], 2), (second[0], 5), (second[1], 5)]):
            q, p = (one(ids[None])[0, :count].log_softmax(-1) for one in (model, teacher))
            loss, kl = -q.gather(-1, ids[1 : 1 + count, None]).sum(), (p.exp() * (p - q)).sum()
            same = (q.argmax(-1) == p.argmax(-1)).sum()
            assert found.per_sequence[:3, column].tolist() == pytest.approx([loss.item(), kl.item(), same.item()])
    loss, kl, same, count = found.per_sequence.sum(1).tolist()
    assert (found.loss, found.kl, found.top1) == pytest.approx((loss / count, kl / count, same / count))
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert set(json.loads(json.dumps(found.to_json()))) == {"held_out_loss", "held_out_kl", "held_out_top1"}
    assert HeldOut(1e6, None, None).perplexity == math.inf


def test_equal_lengths_are_the_paired_test_of_the_textbook():
    """Mean and standard deviation of the differences of means, over the root of their number."""
    apart = torch.tensor([3.0, -1.0, 4.0, 1.0, 5.0]) / 10
    mean, error = paired(of((torch.ones(5) + apart).tolist(), [10] * 5), of([1.0] * 5, [10] * 5))
    assert mean == pytest.approx((apart / 10).mean().item())
    assert error == pytest.approx((apart / 10).std().item() / 5**0.5)


def test_the_error_is_the_spread_of_many_such_sets():
    """Sequences of different lengths, the longer ones with larger differences."""
    generator = torch.Generator().manual_seed(0)
    means, errors = [], []
    for _ in range(2000):
        targets = torch.randint(20, 60, (50,), generator=generator)
        common = torch.randn(50, generator=generator, dtype=torch.float64) * 100
        apart = targets * (0.5 + 0.2 * torch.randn(50, generator=generator, dtype=torch.float64))
        mean, error = paired(of((common + apart).tolist(), targets.tolist()), of(common.tolist(), targets.tolist()))
        means.append(mean)
        errors.append(error)
    assert sum(means) / 2000 == pytest.approx(0.5, abs=0.005)
    assert torch.tensor(means).std().item() == pytest.approx(sum(errors) / 2000, rel=0.05)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (of([1.0, 2.0], [3, 4]), of([1.0, 2.0], [4, 3])),
        (of([1.0], [3]), of([1.0], [3])),
        (of([1.0, 2.0], [3, 4]), HeldOut(1.0, None, None)),
    ],
)
def test_what_is_not_paired_is_refused(one, other):
    with pytest.raises(ConfigError, match="sequence by sequence"):
        paired(one, other)
