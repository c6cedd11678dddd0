# SPDX-License-Identifier: Apache-2.0
"""A healed model of transformers on disk, whatever ends the process that writes it, and whenever.

Class of fault: healed weights without their guard, which load as the original model and give fluent nonsense.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from farskip_compile import describe
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.distill.checkpoints import save_checkpoint
from tests.guard.tiny import IDS, tiny
from tests.interrupted import interrupted


@pytest.mark.parametrize("full", [False, True], ids=["killed", "disk full"])
def test_healed_weights_are_never_there_as_the_original(tmp_path: Path, full: bool) -> None:
    original, healed = tiny(), tiny()
    with torch.no_grad():
        healed.model.norm.weight.add_(1.0)
    original.save_pretrained(tmp_path / "original")
    manifest = describe(healed, IDS, use_cache=False)
    states = {"original": original.model.norm.weight, "healed": healed.model.norm.weight}

    def fresh() -> Iterator[Path]:
        for number in range(1000):
            shutil.copytree(tmp_path / "original", tmp_path / str(number) / "model")
            yield tmp_path / str(number)

    def tokenizer(place: Path) -> None:
        (place / "tokenizer.json").touch()

    def work() -> None:
        save_checkpoint(healed, manifest, Path("model"), TrainingRanks(healed), also=tokenizer)

    seen = []
    for _, folder in interrupted(work, fresh(), full, each=3):
        config, weights = folder / "model" / "config.json", folder / "model" / "model.safetensors"
        if not config.exists():
            seen.append("refused")
            continue
        found = load_file(weights)["model.norm.weight"]
        which = next(name for name, value in states.items() if torch.equal(found, value))
        guarded = json.loads(config.read_text())["model_type"].startswith("farskip_")
        rest = (folder / "model" / "farskip.json").exists(), (folder / "model" / "tokenizer.json").exists()
        assert (guarded, *rest) == ((which == "healed"),) * 3 or (which == "original" and not guarded)
        seen.append(which)
    assert seen[0] == "original"
    assert seen[-1] == "healed"
    assert seen.index("healed") == len(seen) - 1 or not full
