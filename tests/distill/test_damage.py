"""Files of a run that were damaged since they were written: the run has the old content, the state before it, or an
error; never other numbers, never another exception."""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farskip_compile.backend import FarSkipWarning
from farskip_compile.distill import DistillConfig
from farskip_compile.distill.batches import as_batch
from farskip_compile.distill.records import Records
from farskip_compile.distill.run import Run
from farskip_compile.distill.states import Progress, write_state
from farskip_compile.distill.teacher import FrozenTeacher
from farskip_compile.distill.teacher_cache import CachedTeacher
from farskip_compile.errors import ConfigError, DistillationError, FarSkipError
from farskip_compile.json_files import sealed
from tests.distill.common import EAGER, batches, small, weights
from tests.test_json_files import not_a_file

Damage = Callable[[Path], None]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DATA = batches(3)


def result_of(function: Callable[[], Any]) -> Any:
    """What it returns, or the error that it raises; any other exception is a failure."""
    try:
        return function()
    except FarSkipError as error:
        return error


def changed(draw: st.DrawFn, length: int, is_text: bool) -> Damage:
    """A byte is another, or the end is missing; for text more than the last line end."""
    if draw(st.booleans()):
        cut = draw(st.integers(0, length - 1 - is_text))
        return lambda file: os.truncate(file, cut)
    place, mask = draw(st.integers(0, length - 1 - is_text)), draw(st.integers(1, 255))

    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[place] ^= mask
        file.write_bytes(content)

    return flip


@st.composite
def damages(draw: st.DrawFn, file: Path) -> Damage:
    return changed(draw, file.stat().st_size, file.suffix == ".json")


class Kept:
    """Everything in a folder, to be put back after each example."""

    def __init__(self, folder: Path, copy: Path) -> None:
        self.folder, self.copy = folder, copy
        shutil.copytree(folder, copy)
        self.files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())

    def again(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.copy, self.folder)


class States:
    """A run with two states, and what it was in each of them."""

    def __init__(self, folder: Path, copy: Path) -> None:
        config = DistillConfig(options=EAGER, output=folder, learning_rate=1e-2, steps=6, progress=False)
        self.run = Run(small(layers=("moe", "moe")), DATA, batches(1, seed=7), config)
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


class Caches:
    """A cache of two batches, and what it says."""

    def __init__(self, folder: Path, copy: Path) -> None:
        self.folder, self.data = folder, [as_batch(one, torch.device("cpu")) for one in DATA[:2]]
        cached = self.open()
        cached.fill(self.data, FrozenTeacher(small(), copied=False))
        self.said = [cached(batch) for batch in self.data]
        self.kept = Kept(folder, copy)

    def open(self) -> CachedTeacher:
        return CachedTeacher(self.folder, {"model": "a"}, k=4)

    def ask(self, damaged: str) -> None:
        """Whoever needs the file `damaged` gets an error; others what they got before."""
        cached = result_of(self.open)
        if isinstance(cached, FarSkipError):
            assert damaged.endswith(".json"), cached
            assert cached.way_out
            return
        for number, batch in enumerate(self.data):
            found = result_of(lambda batch=batch: cached(batch))
            if damaged == f"0-{number:06d}.safetensors":
                assert isinstance(found, DistillationError)
                assert "remove" in found.way_out
            else:
                assert torch.equal(found.values, self.said[number].values)
                assert torch.equal(found.indices, self.said[number].indices)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Caches:
    folder = tmp_path_factory.mktemp("caches")
    return Caches(folder / "cache", folder / "copy")


@QUICK
@given(st.data())
def test_changed_caches(caches: Caches, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(caches.kept.files))
    data.draw(damages(caches.folder / file))(caches.folder / file)
    try:
        caches.ask(file.name)
    finally:
        caches.kept.again()


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a link to itself", "too large", "nested"])
def test_caches_that_are_none(caches: Caches, kind: str) -> None:
    for file in caches.kept.files:
        try:
            (caches.folder / file).unlink()
            not_a_file(caches.folder / file, kind)
            caches.ask(file.name)
        finally:
            caches.kept.again()


def test_the_way_out_of_a_damaged_cache(caches: Caches) -> None:
    """The entry is removed, and the original asked again about its sequences only."""
    try:
        os.truncate(caches.folder / "0-000001.safetensors", 3)
        with pytest.raises(DistillationError, match="has 3 bytes") as caught:
            caches.open()(caches.data[1])
        entry = caches.folder / "0-000001.json"
        assert f"remove {entry}" in caught.value.way_out
        entry.unlink()
        again = caches.open()
        assert again.fill(caches.data, FrozenTeacher(small(), copied=False)) == 1
        caches.ask("")
    finally:
        caches.kept.again()


def test_entries_of_another_folder_are_refused(caches: Caches) -> None:
    """Also where the file is gone that says whose logits they are."""
    try:
        (caches.folder / "about-0.json").unlink()
        with pytest.raises(ConfigError, match="of something else"):
            CachedTeacher(caches.folder, {"model": "b"}, k=4)
    finally:
        caches.kept.again()


def test_a_file_where_the_cache_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't make the folder"):
        CachedTeacher(tmp_path / "file", {}, k=4)


METRICS = [{"step": step, "loss": 1.0 / step} for step in (1, 2, 3)]


def reported(folder: Path, step: int) -> str:
    Records(DistillConfig(output=folder, progress=False), step, first=True).close()
    return (folder / "metrics.jsonl").read_text()


@QUICK
@given(data=st.data())
def test_changed_metrics(tmp_path: Path, data: st.DataObject) -> None:
    path, lines = tmp_path / "metrics.jsonl", [sealed(one) + "\n" for one in METRICS]
    path.write_text("".join(lines))
    whole = len("".join(lines[:2]))
    changed(data.draw, whole, is_text=True)(path)
    before = path.read_bytes()
    found = result_of(lambda: reported(tmp_path, 2))
    if isinstance(found, DistillationError):
        assert "move" in found.way_out
        assert path.read_bytes() == before
    else:  # a line that was cut off when the process was killed
        assert len(before) < whole
        assert found == "".join(lines[: before.count(b"\n")])


def test_metrics_of_steps_that_are_taken_again(tmp_path: Path) -> None:
    text = "".join(sealed(one) + "\n" for one in METRICS)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert reported(tmp_path, 2) == "".join(text.splitlines(keepends=True)[:2])
    assert reported(tmp_path, 0) == ""


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "too large", "nested"])
def test_metrics_that_are_none(tmp_path: Path, kind: str) -> None:
    not_a_file(tmp_path / "metrics.jsonl", kind)
    if kind == "nested":
        (tmp_path / "metrics.jsonl").write_text("[" * 10**5 + "\n")
    with pytest.raises(DistillationError, match="can't read line 1"):
        reported(tmp_path, 2)
