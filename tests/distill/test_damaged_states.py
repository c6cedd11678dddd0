# SPDX-License-Identifier: Apache-2.0
"""Damaged states: the run has the newest whole one, or an error; never other numbers, never another exception."""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.base.json_files import sealed
from farskip_compile.errors import DistillationError, FarSkipError, FarSkipWarning
from farskip_compile.healing.distill import DistillConfig
from farskip_compile.healing.distill.run import DistillRun
from farskip_compile.healing.distill.states import Progress, write_state
from tests.distill.common import EAGER, batches, small, weights
from tests.distill.damage import DATA, QUICK, Damage, Kept, damages, result_of
from tests.test_json_files import not_a_file


class States:
    """A run with two states, and what it was in each of them."""

    def __init__(self, folder: Path, copy: Path) -> None:
        config = DistillConfig(options=EAGER, output=folder, learning_rate=1e-2, steps=6, progress=False)
        self.run = DistillRun(small(), DATA, batches(1, seed=7), config)
        self.at: dict[int, dict[str, torch.Tensor]] = {}
        for _ in range(2):
            self.run.step()
            self.run.step()
            self.run.save()
            self.at[self.run.taken] = weights(self.run.model)
        self.kept = Kept(folder, copy)

    def resume(self, *, good: set[int]) -> None:
        """Resume, and compare with the newest of the `good` states."""
        run = self.run
        with torch.no_grad():
            for value in run.model.parameters():
                value.fill_(7.0)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            found = result_of(run.resume)
        if isinstance(found, FarSkipError):
            assert not good, found
            assert found.way_out
            assert all(bool((value == 7.0).all()) for value in run.model.parameters())  # nothing was changed
            return
        assert found
        newest = max(good)
        assert run.taken == newest
        assert all(torch.equal(value, self.at[newest][name]) for name, value in weights(run.model).items())
        named = [str(one.message) for one in seen if one.category is FarSkipWarning]
        assert len(named) == sum(step > newest for step in self.at)
        assert all("state-00000004" in one for one in named)


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> States:
    folder = tmp_path_factory.mktemp("states")
    return States(folder / "run", folder / "copy")


def test_two_states_are_kept_as_they_were_written(states: States) -> None:
    files = ["rank-0.json", "rank-0.safetensors"]
    assert [str(file) for file in states.kept.files] == [f"state-0000000{n}/{one}" for n in (2, 4) for one in files]
    states.resume(good={2, 4})


@QUICK
@given(st.data())
def test_changed_states(states: States, data: st.DataObject) -> None:
    files = data.draw(st.lists(st.sampled_from(states.kept.files), min_size=1, max_size=2, unique=True))
    for file in files:
        data.draw(damages(states.kept.folder / file))(states.kept.folder / file)
    try:
        states.resume(good={2, 4} - {int(file.parts[0].removeprefix("state-")) for file in files})
    finally:
        states.kept.again()


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def instead(kind: str, name: str = "") -> Damage:
    def damage(folder: Path) -> None:
        shutil.rmtree(folder / name) if not name else (folder / name).unlink()
        not_a_file(folder / name if name else folder, kind)

    return damage


def says(**content: object) -> Damage:
    """A sealed record with other content."""
    return lambda folder: (folder / "rank-0.json").write_text(sealed(content) + "\n")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("it was run",))


def bomb(folder: Path) -> None:
    for file in [*folder.iterdir(), folder / "rank-0.pt"]:
        file.write_bytes(pickle.dumps(Bomb()))


WHOLE_STATES = {
    "an empty folder": emptied,
    "a file": instead("nested"),
    "a pipe": instead("a pipe"),
    "pickles": bomb,
    "a record of other fields": says(a=1),
    "a record of other types": says(about={}, progress={"taken": "4"}, tensors={"bytes": 1, "sha256": ""}),
    **{
        f"{kind} for {name}": instead(kind, name)
        for name in ("rank-0.json", "rank-0.safetensors")
        for kind in ("a pipe", "a folder", "a link to itself", "too large", "nested", "nothing")
    },
}


@pytest.mark.parametrize("what", WHOLE_STATES)
def test_states_that_are_none(states: States, what: str) -> None:
    try:
        for good, step in (({2}, 4), (set(), 2)):
            WHOLE_STATES[what](states.kept.folder / f"state-0000000{step}")
            states.resume(good=good)
    finally:
        states.kept.again()


PARAMETER = "layers.0.attention.query_up.weight"
MISFITS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "a number for a matrix": lambda tensors: tensors.update(
        {f"value/{PARAMETER}": torch.ones((), dtype=torch.float64)}
    ),
    "another type": lambda tensors: tensors.update({f"best/{PARAMETER}": tensors[f"value/{PARAMETER}"].float()}),
    "another shape": lambda tensors: tensors.update({f"optimizer.exp_avg/{PARAMETER}": torch.ones(3)}),
    "two steps": lambda tensors: tensors.update({f"optimizer.step/{PARAMETER}": torch.ones(2)}),
    "an unknown kind": lambda tensors: tensors.update({f"optimizer.other/{PARAMETER}": tensors[f"value/{PARAMETER}"]}),
    "an unknown name": lambda tensors: tensors.update({"value/other": torch.ones(3)}),
    "no value": lambda tensors: tensors.pop(f"value/{PARAMETER}"),
    "no generator": lambda tensors: tensors.pop("own/generator"),
    "no state of a generator": lambda tensors: tensors.update({"own/epoch": torch.zeros(7, dtype=torch.uint8)}),
}


@pytest.mark.parametrize("what", MISFITS)
def test_a_sealed_state_that_does_not_fit(states: States, what: str) -> None:
    """Nothing of it is broadcast, cast or left as it was."""
    run = states.run
    try:
        tensors = run._snapshot.take(run.feed.position)
        assert f"value/{PARAMETER}" in tensors
        MISFITS[what](tensors)
        progress = Progress(4, 0, 0, 0, 0, 0, 1.0)
        write_state(
            states.kept.folder, (run.about, progress), tensors, run.ranks, states.kept.folder / "state-00000002"
        )
        states.resume(good={2})
    finally:
        states.kept.again()


def test_a_newer_state_that_is_none_is_removed_by_the_next_one(states: States) -> None:
    """And not the last good one for it."""
    folder = states.kept.folder
    try:
        (folder / "state-9").mkdir()
        (folder / "state-00000008").write_text("")
        with pytest.warns(FarSkipWarning, match="state-9: "), pytest.warns(FarSkipWarning, match="state-00000008: "):
            assert states.run.resume()
        assert states.run.taken == 4
        states.run.step()
        states.run.save()
        assert sorted(path.name for path in folder.iterdir()) == ["state-00000004", "state-00000005"]
    finally:
        states.kept.again()


def test_without_a_good_state_each_is_named(states: States) -> None:
    try:
        for step in (2, 4):
            emptied(states.kept.folder / f"state-0000000{step}")
        with pytest.warns(FarSkipWarning), pytest.raises(DistillationError) as caught:
            states.run.resume()
        assert "state-00000002: can't read" in caught.value.reason
        assert "state-00000004: can't read" in caught.value.reason
        assert "resume=False" in caught.value.way_out
    finally:
        states.kept.again()
