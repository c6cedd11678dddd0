# SPDX-License-Identifier: Apache-2.0
"""`learning_rate="auto"`: each trial is a run of its own from the same start; the run is what it would be without."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from farskip_compile import ConfigError
from farskip_compile.errors import DistillationError
from farskip_compile.healing.distill import self_distill, trials
from tests.distill.common import EAGER, batches, small, weights

pytestmark = pytest.mark.xdist_group("trials")  # one worker, so that the tried run is made once

HELD_OUT = batches(1, seed=7)
SHORT = 4
"""3 % of the steps."""
OPTIONS = {
    "steps": 120, "warm_up_steps": 30, "options": EAGER, "evaluate_every": 60, "save_every": 60, "patience": None,
    "progress": False, "beta2_half_life": 100.0,
}  # fmt: skip


def data():
    return DataLoader(TensorDataset(torch.cat(batches(5))), batch_size=2, shuffle=True)


def model():
    return small(layers=("moe",), dropout=0.2)


def told(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tried")
    return self_distill(model(), data(), held_out=HELD_OUT, learning_rate="auto", output=folder, **OPTIONS), folder


def test_each_trial_is_a_short_run(tried):
    """With its rate, a schedule of as many steps, the same random numbers."""
    done, folder = tried
    usual = 0.16 / sum(value.numel() for value in model().parameters()) ** (1 / 3)
    assert [trial.learning_rate for trial in done.trials] == pytest.approx([usual / 2, usual, usual * 2])
    for trial in done.trials:
        assert trial.steps == SHORT
        options = {**OPTIONS, "steps": SHORT, "warm_up_steps": 1, "evaluate_every": SHORT}
        alone = self_distill(model(), data(), held_out=HELD_OUT, learning_rate=trial.learning_rate, **options)
        found = dict(alone.history)[SHORT]
        assert (trial.held_out.kl, trial.held_out.loss) == (found.kl, found.loss)
    scores = [trial.held_out.kl for trial in done.trials]
    assert len(set(scores)) == 3
    assert done.learning_rate == done.trials[scores.index(min(scores))].learning_rate
    first = told(folder)[0]
    assert [first[f"trial_{number}_kl"] for number in (1, 2, 3)] == scores
    assert [one["kl"] for one in done.notes["trials"]] == scores
    assert done.notes["learning_rate"] == done.learning_rate


def test_the_run_is_that_with_the_rate_given(tried, tmp_path):
    done, folder = tried
    given = self_distill(
        model(), data(), held_out=HELD_OUT, learning_rate=done.learning_rate, output=tmp_path, **OPTIONS
    )
    assert told(tmp_path)[1:] == told(folder)[1:]
    assert all(torch.equal(value, weights(done.model)[name]) for name, value in weights(given.model).items())


class Interrupted(Exception):
    pass


class Failing:
    """Fails when the run itself is to begin: after three trials' batches and its own."""

    def __init__(self, after: int) -> None:
        self.left, self.data = after, data()

    def __iter__(self):
        for (batch,) in self.data:
            if self.left == 0:
                raise Interrupted
            self.left -= 1
            yield batch


@pytest.mark.parametrize(("own", "state"), [(2, 0), (70, 60)])
def test_a_resumed_run_does_not_try_again(own, state, tried, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        self_distill(
            model(), Failing(3 * SHORT + own), held_out=HELD_OUT, learning_rate="auto", output=tmp_path, **OPTIONS
        )
    assert max(tmp_path.glob("state-*")).name == f"state-{state:08}"
    monkeypatch.setattr(trials, "_one", None)
    done = self_distill(model(), data(), held_out=HELD_OUT, learning_rate="auto", output=tmp_path, **OPTIONS)
    assert told(tmp_path) == told(tried[1])
    assert (done.learning_rate, done.trials) == (tried[0].learning_rate, tried[0].trials)
    assert all(torch.equal(value, weights(tried[0].model)[name]) for name, value in weights(done.model).items())


def test_a_rate_whose_loss_is_not_finite_is_not_taken(monkeypatch):
    monkeypatch.setattr(trials, "FACTORS", (1.0, 1e200))
    options = {**OPTIONS, "steps": 100, "clip": None}
    done = self_distill(model(), data(), held_out=HELD_OUT, learning_rate="auto", **options)
    assert [trial.held_out is None for trial in done.trials] == [False, True]
    assert done.trials[1].score == math.inf
    assert done.learning_rate == done.trials[0].learning_rate
    start = model()
    before = weights(start)
    monkeypatch.setattr(trials, "FACTORS", (1e200, 1e210))
    with pytest.raises(DistillationError, match="does not stay finite"):
        self_distill(start, data(), held_out=HELD_OUT, learning_rate="auto", **options)
    assert all(torch.equal(value, before[name]) for name, value in weights(start).items())


def test_data_that_does_not_start_anew_is_refused():
    with pytest.raises(ConfigError, match="traversed once only"):
        self_distill(model(), iter(batches(200)), held_out=HELD_OUT, learning_rate="auto", **OPTIONS)
