# SPDX-License-Identifier: Apache-2.0
"""The scripts of examples/ run as they stand, and do what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.examples.running import output_of

pytest.importorskip("transformers")

ALL_BUT_FIRST = "rewired 7 of 8 sub-blocks (4 layers, 4 MoE): standard -> full, verified"


def left_out(text: str) -> dict[str, str]:
    return dict(re.findall(r"^  (\w+\.\d+) leaves out (.+)$", text, re.MULTILINE))


FULL = {f"moe.{layer}": f"a{layer}" for layer in range(4)} | {
    f"attention.{layer}": f"r{layer - 1}" for layer in (1, 2, 3)
}


def test_a_model_of_transformers_is_explained_and_runs_rewired(tmp_path: Path) -> None:
    said = output_of("rewire_transformers.py", folder=tmp_path)
    explained, ran = said.split("This ran:\n")
    assert ALL_BUT_FIRST in explained
    assert re.search(r"^ +1  attention\.1  same +e\.\.r0  e, a0 +$", explained, re.MULTILINE)
    assert ran.startswith(ALL_BUT_FIRST)
    assert left_out(ran) == FULL
    assert float(re.search(r"KL to the original: (\S+) nats", ran)[1]) > 0.01
    assert max(map(len, said.splitlines())) <= 80


def test_two_ranks_train_and_the_profile_says_what_was_exposed(tmp_path: Path) -> None:
    said = output_of("train_two_ranks.py", folder=tmp_path, ranks=2)
    losses = dict(re.findall(r"^(plain|rewired): loss (.*) after", said, re.MULTILINE))
    for name in ("plain", "rewired"):
        first, last = map(float, losses[name].split(" -> "))
        assert last < first - 1
    assert losses["plain"] != losses["rewired"]
    assert "rewired 3 of 4 sub-blocks (2 layers, 2 MoE): standard -> full, verified" in said
    hidden = [float(one) for one in re.findall(r"(\S+)% of communication hidden", said)]
    assert hidden[0] == 0, "Inductor waits right after the launch"
    assert hidden[1] > 0
    assert re.search(r"^ all_to_all_single +8 ", said, re.MULTILINE)
    (traces,) = tmp_path.glob("farskip-traces-*")
    assert {file.name for file in traces.iterdir()} == {f"{name}{rank}.json" for name in losses for rank in (0, 1)}


def test_layers_under_fsdp_learn_rewired(tmp_path: Path) -> None:
    said = output_of("regional_fsdp2.py", folder=tmp_path, ranks=2)
    losses = [float(loss) for loss in re.findall(r"^step \d+: loss (\S+)$", said, re.MULTILINE)]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 1
    assert ALL_BUT_FIRST in said
    assert left_out(said) == FULL


def heal(folder: Path, *sizes: str) -> tuple[Path, str]:
    """The folder of a checkpoint, and what was printed."""
    healed = folder / "healed"
    return healed, output_of("heal_and_evaluate.py", *sizes, "--out", str(healed), folder=folder)


def test_what_is_healed_is_nearer_to_the_original(tmp_path: Path) -> None:
    healed, said = heal(tmp_path)
    kl = {name: float(value) for value, name in re.findall(r"(\d\.\d{4}) (rewired|folded|healed)", said)}
    assert kl["rewired"] > 2 * kl["folded"] > 2 * 1.5 * kl["healed"] > 0
    lines = re.findall(r"^(original|rewired|healed) +(\S+) +(\S+) +(\S+)%$", said, re.MULTILINE)
    rows = {name: [float(one) for one in figures] for name, *figures in lines}
    assert rows["original"][1:] == [0, 100]
    assert rows["rewired"][1] > 3 * rows["healed"][1] > 0
    assert rows["original"][0] < rows["healed"][0] < rows["rewired"][0]
    assert rows["rewired"][2] < rows["healed"][2] < 100
    assert json.loads((healed / "config.json").read_text())["model_type"] == "farskip_qwen3_moe"


def test_what_was_healed_is_served(tmp_path: Path) -> None:
    """Hardly trained, it may write the same in either wiring: that these are told apart is for random weights."""
    healed, _ = heal(tmp_path, "--teacher-steps", "40", "--steps", "1")
    (serve := tmp_path / "serve").mkdir()
    served(output_of("serve.py", str(healed), folder=serve), str(healed))


def test_a_checkpoint_is_converted_and_served(tmp_path: Path) -> None:
    said = output_of("serve.py", folder=tmp_path)
    served(said, str(tmp_path))
    assert int(re.search(r"without a cache, as written: (\d+) of 32$", said, re.MULTILINE)[1]) < 30


def served(said: str, folder: str) -> None:
    """Holds that all tokens are those of the rewired model."""
    assert "without farskip_compile: The checkpoint you are trying to load has model type `farskip_qwen3_moe`" in said
    assert "not compiled: the weights are for a FarSkip form of this model" in said
    assert said.count("rewired 5 of 6 sub-blocks (3 layers, 3 MoE): standard -> full, verified") == 2
    assert "without a cache, rewired: 32 of 32\n" in said
    assert re.search(r"without a cache, as written: \d+ of 32$", said, re.MULTILINE)
    commands = re.findall(r"^(?:vllm serve|farskip check serving) (.*)$", said, re.MULTILINE)
    assert len(commands) == 2
    assert all(one.startswith(folder) for one in commands)
