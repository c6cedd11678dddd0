# SPDX-License-Identifier: Apache-2.0
"""A run that was interrupted goes on to the same bits, and to the same lines of metrics."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch.utils.data import DataLoader, TensorDataset

from farskip_compile import ConfigError, FarSkipWarning
from farskip_compile.healing.distill import self_distill
from tests.distill.common import EAGER, batches, small, weights

pytestmark = pytest.mark.xdist_group("resumed runs")  # one worker, so that the whole run is made once

HELD_OUT = batches(1, seed=7)
OPTIONS = {
    "steps": 12, "learning_rate": 1e-2, "warm_up_steps": 2, "options": EAGER, "evaluate_every": 2, "save_every": 3,
    "patience": None, "progress": False,
}  # fmt: skip


class Interrupted(Exception):
    pass


class Loader:
    """Shuffles anew in each epoch, and fails once when it has given so many batches."""

    def __init__(self, fail_after: int | None = None) -> None:
        ids = torch.cat(batches(5))
        self.loader = DataLoader(TensorDataset(ids), batch_size=2, shuffle=True)
        self.left = fail_after

    def __iter__(self):
        for (batch,) in self.loader:
            if self.left == 0:
                raise Interrupted
            if self.left is not None:
                self.left -= 1
            yield batch


def told(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def model(seed: int = 0):
    return small(seed, dropout=0.2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return self_distill(model(), Loader(), held_out=HELD_OUT, output=folder, **OPTIONS), folder


def assert_same(one, folder, whole):
    done, whole_folder = whole
    assert all(torch.equal(value, weights(done.model)[name]) for name, value in weights(one.model).items())
    assert (one.best_step, one.tokens, one.after) == (done.best_step, done.tokens, done.after)
    assert told(folder) == told(whole_folder)
    assert sorted(path.name for path in folder.glob("state-*")) == ["state-00000009", "state-00000012"]


def test_the_result_is_the_same_bits(tmp_path, whole):
    """Data in another order each epoch, dropout, a learning rate that moves, the best weights of an earlier step; and
    interrupted again and again: before the first state, in the second epoch, in the third."""
    for fail_after, state in [(2, None), (7, 6), (4 + 2, 9)]:  # a resumed run draws the epoch of its state again
        with pytest.raises(Interrupted):
            self_distill(model(), Loader(fail_after), held_out=HELD_OUT, output=tmp_path, **OPTIONS)
        states = sorted(path.name for path in tmp_path.glob("state-*"))
        assert states[-1:] == ([] if state is None else [f"state-{state:08}"])
    resumed = self_distill(model(), Loader(), held_out=HELD_OUT, output=tmp_path, **OPTIONS)
    assert_same(resumed, tmp_path, whole)


def test_with_a_cached_teacher(tmp_path):
    options = {**OPTIONS, "teacher": "cache", "top_k": 8, "steps": 12}
    done = self_distill(model(), Loader(), held_out=HELD_OUT, output=tmp_path / "whole", **options)
    with pytest.raises(Interrupted):  # it goes through the data once, before
        self_distill(model(), Loader(5 + 7), held_out=HELD_OUT, output=tmp_path / "parts", **options)
    resumed = self_distill(model(), Loader(), held_out=HELD_OUT, output=tmp_path / "parts", **options)
    assert_same(resumed, tmp_path / "parts", (done, tmp_path / "whole"))


def test_a_run_that_is_done_is_not_taken_again(tmp_path, whole):
    shutil.copytree(whole[1], tmp_path / "again")
    resumed = self_distill(model(), [], held_out=HELD_OUT, output=tmp_path / "again", **OPTIONS)
    assert_same(resumed, tmp_path / "again", whole)


def test_the_state_of_another_run_is_refused(tmp_path, whole):
    shutil.copytree(whole[1], tmp_path / "again")
    for other, options, words in [
        (model(), {"steps": 20}, "another configuration"),
        (model(), {"connectivity": "mlp"}, "another configuration"),
        (model(seed=3), {}, "another model"),
    ]:
        with pytest.raises(ConfigError, match=words):
            self_distill(other, Loader(), held_out=HELD_OUT, output=tmp_path / "again", **{**OPTIONS, **options})
    options = {**OPTIONS, "steps": 1, "resume": False}
    assert self_distill(model(), Loader(), held_out=HELD_OUT, output=tmp_path / "again", **options).steps == 1


@pytest.mark.parametrize("damage", ["a byte", "an empty folder"])
def test_a_damaged_state_gives_way_to_the_one_before_it(tmp_path, whole, damage):
    """It says so, and comes to the same end."""
    folder = tmp_path / "again"
    shutil.copytree(whole[1], folder)
    file = folder / "state-00000012" / "rank-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    if damage == "an empty folder":
        shutil.rmtree(file.parent)
        file.parent.mkdir()
    with pytest.warns(FarSkipWarning, match="a damaged state is left out: state-00000012: "):
        resumed = self_distill(model(), Loader(), held_out=HELD_OUT, output=folder, **OPTIONS)
    assert_same(resumed, folder, whole)


class Killed(Loader):
    """Ends the process at the eighth batch, as the kernel does when memory is short."""

    given = 0

    def __iter__(self):
        for batch in super().__iter__():
            self.given += 1
            if self.given == 8:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def run_until_killed(folder: Path) -> None:
    torch.set_num_threads(1)
    self_distill(model(), Killed(), held_out=HELD_OUT, output=folder, **OPTIONS)


def test_a_killed_process_leaves_whole_files(tmp_path, whole):
    context = torch.multiprocessing.get_context("forkserver")
    process = context.Process(target=run_until_killed, args=(tmp_path / "parts",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    resumed = self_distill(model(), Loader(), held_out=HELD_OUT, output=tmp_path / "parts", **OPTIONS)
    assert_same(resumed, tmp_path / "parts", whole)
