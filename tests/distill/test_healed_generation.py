# SPDX-License-Identifier: Apache-2.0
"""A healed model of transformers, saved, loaded and compiled by its manifest, generates what the oracle generates."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import farskip_compile
from farskip_compile.healing.distill import self_distill
from tests.models.test_generation import deepseek as deepseek_v3
from tests.models.test_generation import generate, mixtral, oracle

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("build", [deepseek_v3, mixtral])
def test_generation_from_the_saved_checkpoint_equals_the_oracles(build, tmp_path):
    model: Any = build().double()
    farskip_compile.prepare(model)
    generator = torch.Generator().manual_seed(1)
    data = [torch.randint(0, 128, (2, 12), generator=generator) for _ in range(4)]
    before = {name: value.clone() for name, value in model.named_parameters()}
    done = self_distill(
        model, data, steps=4, learning_rate=1e-3, evaluate_every=2, held_out=data[:1], options={"inner": "eager"}
    )
    assert done.best_step
    done.save(tmp_path)

    healed: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    farskip_compile.prepare(healed)
    assert not any(torch.equal(value, before[name]) for name, value in healed.named_parameters() if value.dim() > 1)
    with pytest.raises(farskip_compile.OriginalWiringError, match=r"farskip\.json"):
        generate(healed)
    farskip_compile.unguard(healed)
    as_original = generate(healed)
    with oracle(healed):
        expected = generate(healed)
    manifest = farskip_compile.load_manifest(tmp_path)
    healed.compile(backend="farskip", fullgraph=True, options={"inner": "eager", "manifest": manifest})
    output = generate(healed)
    assert torch.equal(output.sequences, expected.sequences)
    assert all(torch.equal(one, other) for one, other in zip(output.logits, expected.logits, strict=True))
    assert not torch.equal(output.logits[0], as_original.logits[0])
