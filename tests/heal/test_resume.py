# SPDX-License-Identifier: Apache-2.0
"""`farskip heal` that is killed before and within steps, and called again: none is done twice, to the same bits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("datasets")

from farskip_compile.healing.distill.run import DistillRun
from farskip_compile.healing.heal import main
from farskip_compile.healing.heal.settings import HealSettings
from tests.economy import held_to_all
from tests.heal.common import OPTIONS, make_checkpoint, tiny_qwen3_moe

STEPS = ("explain", "estimate", "forecast", "damage_of", "choose_rows", "self_distill", "judge")
# before the question, within the training and after it; a release is killed before each step
KILLED_AT = (*STEPS[1:-1], "within", STEPS[-1]) if held_to_all() else ("estimate", "within", "judge")
LAST = 12
"""The step of training after which a run is killed; states are written each time that weights are evaluated."""


class KilledError(Exception):
    pass


@pytest.fixture
def folder(tmp_path):
    make_checkpoint(tmp_path, tiny_qwen3_moe())
    return tmp_path


def settings(folder: Path, out: str) -> HealSettings:
    texts = {"data": (folder / "train.txt",), "held_out": (folder / "held.txt",)}
    return HealSettings(checkpoint=folder / "checkpoint", out=folder / out, recipe="best", **texts, **OPTIONS)


def comparable(report: dict) -> dict:
    """All but times, and the name of the folder."""
    found = {name: value for name, value in report.items() if name not in ("out", "seconds", "estimate")}
    for name in ("damage", "plan", "healing", "explanation"):
        found[name] = {key: value for key, value in found[name].items() if key not in ("seconds", "resumed")}
    return found


def test_killed_at_each_step(folder, monkeypatch) -> None:
    whole = main.heal(settings(folder, "whole"), main.Talk())
    calls: Counter[str] = Counter()
    kill = [""]

    def counted(name, function):
        def call(*args, **kwargs):
            if kill[0] == name:
                raise KilledError(name)
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    for name in STEPS:
        monkeypatch.setattr(main, name, counted(name, getattr(main, name)))
    questions = []
    talk = main.Talk(agrees=lambda: not questions.append(None))
    taken: list[int] = []
    step = DistillRun.step

    def some_steps(self):
        if kill[0] == "within" and len(taken) == LAST:
            raise KilledError
        taken.append(self.taken)
        return step(self)

    monkeypatch.setattr(DistillRun, "step", some_steps)
    for name in KILLED_AT:
        kill[0] = name
        with pytest.raises(KilledError):
            main.heal(settings(folder, "parts"), talk)
        assert not (folder / "parts" / "report.json").exists()
    kill[0] = ""
    found = main.heal(settings(folder, "parts"), talk)
    # before the answer nothing is kept, so what was explained for the first question is explained again
    assert calls == {"explain": 2, "self_distill": 2, **dict.fromkeys(("estimate", *STEPS[2:5], "judge"), 1)}
    assert len(questions) == 1
    assert taken == list(range(20))  # the last state is of step 12, and no step is taken twice
    assert comparable(found) == comparable(whole)
    assert (found["healing"]["resumed"], whole["healing"]["resumed"]) == (True, False)
    one, other = (folder / name / "model" / "model.safetensors" for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()


def test_a_damaged_record_is_not_read(folder) -> None:
    from farskip_compile.errors import DistillationError
    from farskip_compile.healing.heal.steps import HealSteps

    steps = HealSteps(folder)
    steps.release()
    assert steps.run("one", {"a": [1, 2]}, lambda: {"found": 3})["found"] == 3
    assert steps.run("one", {"a": (1, 2)}, lambda: {"found": 4})["found"] == 3
    assert steps.run("one", {"a": (1, 3)}, lambda: {"found": 4})["found"] == 4  # another argument: done again
    file = folder / "steps" / "one.json"
    file.write_text(file.read_text().replace('"found": 4', '"found": 5'))
    with pytest.raises(DistillationError, match="damaged"):
        steps.run("one", {"a": (1, 3)}, lambda: {"found": 4})
