# SPDX-License-Identifier: Apache-2.0
"""A run that begins with a fold: its student is the folded model, its teacher the original."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import farskip_compile.healing.fold
from farskip_compile import ConfigError
from farskip_compile.healing.distill import self_distill
from farskip_compile.healing.fold import fold
from tests.distill.common import EAGER, weights
from tests.fold import by_hand
from tests.fold.test_fold import batches

pytestmark = pytest.mark.xdist_group("folded runs")  # one worker, so that the whole run is made once

DATA, HELD_OUT = batches(6, 1), batches(2, 2)
OPTIONS = {
    "held_out": HELD_OUT, "steps": 8, "learning_rate": 1e-4, "options": EAGER, "evaluate_every": 4, "save_every": 4,
    "fold": True, "fold_batches": 3, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return self_distill(by_hand.Model(3), DATA, output=folder, **OPTIONS), folder


def test_the_student_is_folded_and_the_teacher_is_not(whole):
    done, folder = whole
    original, folded = by_hand.Model(3), by_hand.Model(3)
    found = fold(folded, DATA[:3], held_out=HELD_OUT)
    assert done.before.kl == pytest.approx(by_hand.kl(original, original, HELD_OUT), rel=1e-9)
    assert done.folded.kl == pytest.approx(by_hand.kl(original, folded, HELD_OUT), rel=1e-9)
    assert done.after.kl == pytest.approx(by_hand.kl(original, done.model, HELD_OUT), rel=1e-9)
    assert done.after.kl < done.folded.kl < done.before.kl
    assert done.notes["fold"]["kl_after"] == pytest.approx(found.kl_after, rel=1e-9)
    assert done.notes["fold"]["accepted"] == sum(read.accepted for read in found.reads)
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert (first["held_out_kl"], first["folded_kl"]) == (done.before.kl, done.folded.kl)


class Interrupted(Exception):
    pass


class Short(list):
    """Is whole for the fold, and ends the run at its third batch."""

    given = 0

    def __iter__(self):
        self.given += 1
        for number, one in enumerate(list.__iter__(self)):
            if self.given == 2 and number == 2:
                raise Interrupted
            yield one


def test_a_resumed_run_does_not_fold_again(whole, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        self_distill(by_hand.Model(3), Short(DATA), output=tmp_path, **OPTIONS)
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-00000000"]
    monkeypatch.setattr(farskip_compile.healing.fold, "fold", None)
    done = self_distill(by_hand.Model(3), DATA, output=tmp_path, **OPTIONS)
    assert all(torch.equal(value, weights(whole[0].model)[name]) for name, value in weights(done.model).items())
    assert (done.folded, done.notes, done.after) == (whole[0].folded, whole[0].notes, whole[0].after)
    assert (tmp_path / "metrics.jsonl").read_text() == (whole[1] / "metrics.jsonl").read_text()


def test_where_no_step_is_better_the_folded_weights_stay():
    model = by_hand.Model(3)
    done = self_distill(model, DATA, **{**OPTIONS, "steps": 1, "learning_rate": 0.0, "evaluate_every": 1})
    assert (done.best_step, done.after) == (0, done.folded)
    folded = by_hand.Model(3)
    fold(folded, DATA[:3], held_out=HELD_OUT)
    assert all(torch.equal(value, weights(folded)[name]) for name, value in weights(model).items())


def test_data_that_does_not_start_anew_is_refused():
    model = by_hand.Model(3)
    before = copy.deepcopy(weights(model))
    with pytest.raises(ConfigError, match="take the first batches of the data, which can be traversed once"):
        self_distill(model, iter(DATA), **OPTIONS)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
