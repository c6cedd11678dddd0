# SPDX-License-Identifier: Apache-2.0
"""Interrupts, no memory, threads, and a cache that can't be written or read: an error or the right result.

Each test has a process of its own, so that nothing that one of them breaks is left to the next.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Tell
from tests.faults.outcomes import FINE, Outcome, run_scenes
from tests.faults.processes import (
    make_read_only,
    rewired_again,
    scheduled_again,
    two_configurations,
    two_threads,
    two_threads_scheduled,
)
from tests.faults.programs import CACHE, INDUCTOR, KERNELS, OUR_PASS, Fault, step
from tests.faults.table import disk_state

pytestmark = pytest.mark.xdist_group("process faults")

INTERRUPT = {"here": signal.SIGINT}
FAULTS = {"here": ("SIGINT", "KeyboardInterrupt"), "memory": ("no memory (RLIMIT_AS)", "MemoryError")}
"""By the kind of a fault: how it was made, and what reaches the user."""
STEP = (step, (({},),))


def run(folder: Path, *scenes: Any, **how: Any) -> list[Outcome]:
    """In one process; its outcome of each scene. None may end the process."""
    outcomes = run_scenes(scenes, 1, environment={"TORCHINDUCTOR_CACHE_DIR": str(folder)}, **how)
    assert all(outcomes), f"the process was gone after: {next(last for (last,) in reversed([*filter(None, outcomes)]))}"
    return [outcome for (outcome,) in outcomes]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the graphs of `STEP`."""
    folder = tmp_path_factory.mktemp("filled")
    (outcome,) = run(folder, STEP)
    assert (outcome.ended, outcome.value) == (FINE, True), outcome
    assert "readable" in disk_state(folder)
    return folder


def test_what_goes_wrong_in_rewiring_leaves_graph_and_model_as_they_were(tmp_path: Path, tell: Tell) -> None:
    faults = [Fault(place, "memory") for place in ("normalize", "rewire", "verify")] + [Fault("rewire", "here")]
    for fault, outcome in zip(
        faults, run(tmp_path, *((rewired_again, (fault,)) for fault in faults), hits=INTERRUPT), strict=True
    ):
        made, expected = FAULTS[fault.kind]
        assert outcome.ended == FINE, outcome
        tell(f"{made} while rewiring", f"in {fault.place}", [_raised(outcome)], disk_state(tmp_path))
        assert expected in outcome.value["raised"]
        assert {key: value for key, value in outcome.value.items() if key != "raised"} == {
            "graph as it was": True,
            "rewired then": True,
            "model as it was": True,
            "right": True,
        }


def test_what_goes_wrong_in_inductor_leaves_nothing_behind(tmp_path: Path, tell: Tell) -> None:
    """The next call of the same model compiles it, schedules it, and is right; so does another process."""
    places = [(OUR_PASS, 1), (OUR_PASS, 2), (KERNELS, 1), (INDUCTOR, 1), (INDUCTOR, 2), (CACHE, 1)]
    faults = [Fault(place, "here", number) for place, number in places]
    faults += [Fault(OUR_PASS, "memory"), Fault(KERNELS, "memory", 2)]
    folders = [tmp_path / str(index) for index in range(len(faults))]
    for folder in folders:
        folder.mkdir()
    scenes = [
        (scheduled_again, (str(folder), fault, {"memory_increase": 0.1 + index / 100}))
        for index, (folder, fault) in enumerate(zip(folders, faults, strict=True))
    ]
    for fault, folder, outcome in zip(faults, folders, run(tmp_path, *scenes, hits=INTERRUPT), strict=True):
        made, expected = FAULTS[fault.kind]
        assert outcome.ended == FINE, outcome
        phase = ("forward", "backward")[fault.number - 1]
        tell(f"{made} while Inductor compiles", f"in {fault.place}, {phase}", [_raised(outcome)], disk_state(folder))
        assert expected in outcome.value["raised"]
        assert outcome.value["right"]
        assert outcome.value["scheduled"][-2:] == ["forward", "backward"]
    for folder in (folders[3], folders[5]):
        (outcome,) = run(folder, STEP)
        assert (outcome.ended, outcome.value) == (FINE, True), outcome


def _raised(outcome: Outcome) -> Outcome:
    """What a scene caught by itself, as an outcome for the table."""
    name, _, text = outcome.value["raised"].partition(":")
    return Outcome(outcome.rank, name, f"{text.strip()} Called again: right.".strip())


def test_two_models_in_one_process(tmp_path: Path, tell: Tell) -> None:
    scenes = [(two_configurations, ()), (two_threads, (False,)), (two_threads, (True,)), (two_threads_scheduled, ())]
    outcomes = run(tmp_path, *scenes)
    names = [
        "two models, two configurations",
        "two models, two threads",
        "one model, two threads",
        "two models, two threads, trained under Inductor",
    ]
    for name, outcome in zip(names, outcomes, strict=True):
        tell(name, "connectivity full and mlp; threads start at a barrier", [outcome], disk_state(tmp_path))
        assert outcome.ended == FINE, outcome
    for outcome in outcomes[:3]:
        found = outcome.value
        assert found["right"], found
        assert found["differ"], "the two forms have the same outputs: the test shows nothing"
        assert all(count > 1 for count in found["outputs"])
        for wish, reports in zip(("full", "mlp"), found["reports"], strict=True):
            assert set(reports) == {(wish, "rewired")}, found
        assert set(found["kept"]) == {"full", "mlp"}, found
    assert outcomes[3].value == {"right": True, "launches": [2, 2, 3, 3]}


def test_a_cache_that_can_not_be_written(tmp_path: Path, tell: Tell) -> None:
    """On a mount of its own that is read-only; where the tests may not mount, behind a regular file. Permissions would
    not do, since root ignores them."""
    folder = tmp_path / "cache"
    folder.mkdir()
    how, found = run(folder, (make_read_only, (str(folder),)), STEP)
    assert how.ended == FINE, how
    tell("a cache that can't be written", how.value, [found], disk_state(folder))
    if found.ended == FINE:
        assert found.value, "wrong numbers"
    else:
        assert str(folder) in found.text, found
    (folder / "file").unlink(missing_ok=True)
    (again,) = run(folder, STEP)
    assert (again.ended, again.value) == (FINE, True), again


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def garbled(content: bytes) -> bytes:
    return bytes(value ^ 0x5A for value in content)


@pytest.mark.parametrize("spoil", [cut, garbled])
@pytest.mark.parametrize("what", ["graphs", "code"])
def test_a_spoilt_cache(what: str, spoil: Callable[[bytes], bytes], filled: Path, tmp_path: Path, tell: Tell) -> None:
    """Every file of the FX-graph and AOTAutograd caches, or every generated program, is cut in half, or garbled from
    end to end. Inductor keeps no checksums: a single wrong bit in a number of a program would go unseen."""
    folder = tmp_path / "cache"
    shutil.copytree(filled, folder)
    kinds = ("fxgraph", "aotautograd")
    files = [path for path in folder.rglob("*") if path.is_file()]
    chosen = [path for path in files if (path.relative_to(folder).parts[0] in kinds) == (what == "graphs")]
    assert chosen
    for path in chosen:
        path.write_bytes(spoil(path.read_bytes()))
    (outcome,) = run(folder, STEP)
    tell(f"a spoilt cache: {what}", f"{len(chosen)} files {spoil.__name__}", [outcome], disk_state(folder))
    if outcome.ended == FINE:
        assert outcome.value, "wrong numbers"
    else:
        assert outcome.text
        assert any(str(path) in outcome.text or path.stem in outcome.text for path in chosen), outcome
