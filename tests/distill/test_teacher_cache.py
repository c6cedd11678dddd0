# SPDX-License-Identifier: Apache-2.0
"""A teacher on disk says what the copy says, of its largest logits; and of nothing that it was not asked about."""

from __future__ import annotations

import pytest
import torch

from farskip_compile import ConfigError
from farskip_compile.healing.causal.batches import as_batch
from farskip_compile.healing.causal.identity import checksum
from farskip_compile.healing.causal.teacher import FrozenTeacher
from farskip_compile.healing.distill import self_distill
from farskip_compile.healing.distill.teacher_cache import CachedTeacher, sequence_keys
from tests.distill.common import EAGER, VOCABULARY, batches, small, weights

CPU = torch.device("cpu")
HELD_OUT = batches(1, seed=7)
OPTIONS = {"steps": 4, "learning_rate": 1e-3, "options": EAGER, "evaluate_every": 4, "patience": None}


def test_with_all_logits_it_is_the_copy(tmp_path):
    copied, cached = small(), small()
    one = self_distill(copied, batches(3), held_out=HELD_OUT, **OPTIONS)
    other = self_distill(
        cached, batches(3), held_out=HELD_OUT, teacher="cache", top_k=VOCABULARY, output=tmp_path, **OPTIONS
    )
    assert other.before.kl == pytest.approx(one.before.kl, rel=1e-5)
    assert other.after.kl == pytest.approx(one.after.kl, rel=1e-4)
    assert other.before.top1 == one.before.top1
    assert other.before.loss == one.before.loss


def test_sequences_are_found_whatever_batch_they_come_in(tmp_path):
    model, data = small(), [as_batch(one, CPU) for one in batches(3)]
    cached = CachedTeacher(tmp_path, {"model": checksum(model)}, k=5)
    teacher = FrozenTeacher(model, copied=False)
    assert cached.fill(data, teacher) == 3
    assert cached.fill(data, teacher) == 0  # it knows them
    mixed = as_batch(torch.stack([data[2].inputs["input_ids"][1], data[0].inputs["input_ids"][0]]), CPU)
    expected = teacher(mixed)[:, :-1].log_softmax(-1).topk(5)
    said = CachedTeacher(tmp_path, {"model": checksum(model)}, k=5)(mixed)
    assert torch.equal(said.indices, expected.indices)
    assert torch.allclose(said.values.double(), expected.values, rtol=1e-6)
    with pytest.raises(ConfigError, match="no logits for a sequence"):
        cached(as_batch(batches(1, seed=50)[0], CPU))
    with pytest.raises(ConfigError, match="another top_k: 5, not 6"):
        CachedTeacher(tmp_path, {"model": checksum(model)}, k=6)
    with pytest.raises(ConfigError, match="another model"):
        CachedTeacher(tmp_path, {"model": checksum(small(seed=1))}, k=5)


def test_a_mask_is_a_part_of_the_sequence():
    ids, mask = batches(1)[0], torch.ones(2, 6, dtype=torch.long)
    plain = sequence_keys(as_batch(ids, CPU))
    masked = sequence_keys(as_batch({"input_ids": ids, "attention_mask": mask}, CPU))
    assert len({*plain, *masked}) == 4


def test_no_copy_of_the_weights_is_held(tmp_path):
    model = small()
    cached = FrozenTeacher(model, copied=False)
    assert cached.values == {}
    before = weights(model)
    self_distill(model, batches(2), held_out=HELD_OUT, teacher="cache", output=tmp_path, **OPTIONS)
    assert len(list((tmp_path / "teacher").glob("*.safetensors"))) == 3
    assert before.keys() == weights(model).keys()
