# SPDX-License-Identifier: Apache-2.0
"""A rank dies, hangs, fails, or is about something else: every living rank gets a clear error, and soon.

Soon: where nobody waits for a timeout, that of the process group is longer than any scene may take (`outcomes`); where
one has to, it is set to a few seconds, and not the half hour that gloo's groups have by default. All tests share one
cache folder, and the last one looks whether ranks can still work with it.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Tell
from tests.faults.outcomes import FINE, Outcome, run_scenes
from tests.faults.processes import opposite_threads
from tests.faults.programs import (
    INDUCTOR,
    KERNELS,
    ON_PURPOSE,
    OUR_PASS,
    USERS_PASS,
    Fault,
    in_a_row,
    step,
    step_again,
    store_dies,
    too_late,
)
from tests.faults.table import disk_state

pytestmark = pytest.mark.xdist_group("rank faults")  # one worker, so that the last test sees what the others left

KILL, STOP = {"here": signal.SIGKILL}, {"here": signal.SIGSTOP}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(folder: Path) -> Any:
    def run(*scenes: Any, **how: Any) -> list[list[Outcome]]:
        return run_scenes(scenes, environment={"TORCHINDUCTOR_CACHE_DIR": str(folder)}, **how)

    return run


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_rank_dies_in_mid_step(direction: str, run: Any, folder: Path, tell: Tell) -> None:
    """The other one has launched the next collective: gloo notices that the connection is gone."""
    fault = Fault(f"running {direction}", "here")
    ((waiting, dead),) = run((step, (({}, {"fault": fault}),)), hits=KILL)
    tell(
        f"a rank dies in mid-step, {direction}", "SIGKILL between two all-to-alls", [waiting, dead], disk_state(folder)
    )
    assert dead.ended == "killed by SIGKILL"
    assert waiting.ended == "RuntimeError", waiting
    assert "gloo" in waiting.text, waiting
    assert "peer" in waiting.text or "pipe" in waiting.text, waiting


def test_a_rank_hangs_in_mid_step(run: Any, folder: Path, tell: Tell) -> None:
    fault = Fault("running forward", "here", number=2)
    other = Fault("running forward", "here", number=3)  # never: it only runs the second step as well
    ((waiting, hung),) = run((step, (({"fault": other}, {"fault": fault}),)), hits=STOP)
    tell(
        "a rank hangs in mid-step", "SIGSTOP between two all-to-alls; timeout 3 s", [waiting, hung], disk_state(folder)
    )
    assert waiting.ended == "RuntimeError", waiting
    assert "imed out" in waiting.text, waiting


def test_a_rank_dies_while_it_compiles(run: Any, folder: Path, tell: Tell) -> None:
    """Nobody can tell that it is dead; but the wait ends with the timeout of the process group, and names it."""
    dying = {"label": "dies", "fault": Fault(USERS_PASS, "here")}
    ((waiting, dead),) = run((step, (({"timeout": 3.0}, dying),)), hits=KILL)
    tell("a rank dies while it compiles", "SIGKILL in a pass; timeout 3 s", [waiting, dead], disk_state(folder))
    assert waiting.ended == "RankFailedError", waiting
    assert "rank 0 waited 3 s, the timeout of the process group, for rank 1" in waiting.text
    assert "all_to_all_single float32" in waiting.text


def test_the_rank_that_keeps_the_store_dies(run: Any, folder: Path, tell: Tell) -> None:
    ((dead, waiting),) = run((store_dies, ()), hits={"keeping the store": signal.SIGKILL}, tcp=True)
    tell(
        "the rank that keeps the store dies",
        "SIGKILL while the other one waits for it in the store",
        [dead, waiting],
        disk_state(folder),
    )
    assert waiting.ended == "RankFailedError", waiting
    assert "the store" in waiting.text
    assert "most often rank 0" in waiting.text


DIFFERENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "connectivity: rank 0 has 'full', rank 1 has 'mlp'": ({}, {"connectivity": "mlp"}),
    "layers: rank 0 has [1, 2], rank 1 has [1, 3]": ({"layers": (1, 2)}, {"layers": (1, 3)}),
    "profile: rank 0 has 'cpu-gloo": ({"profile": "cpu-gloo"}, {"profile": "h100"}),
    "memory_increase: rank 0 has 0.05, rank 1 has 0.5": ({}, {"memory_increase": 0.5}),
    "merge_reductions: rank 0 has True, rank 1 has False": ({"merge_reductions": True}, {}),
    "connectivity['moe.0']: rank 0 has ['a0'], rank 1 has 'nothing'": (
        {"connectivity": {"moe.0": ["a0"]}},
        {"connectivity": {}},
    ),
    "schedule: rank 0 has True, rank 1 has False": ({}, {"schedule": False}),
    "connectivity: rank 0 has 'none', rank 1 has 'mlp'": (
        {"connectivity": "none", "schedule": False},
        {"connectivity": "mlp", "schedule": False},
    ),
    "connectivity: rank 0 has 'attention', rank 1 has 'mlp'": (
        {"connectivity": "attention", "inner": "eager"},
        {"connectivity": "mlp", "inner": "eager"},
    ),
    "connectivity: rank 0 has 'attention', rank 1 has 'full'": (
        {"connectivity": "attention", "inner": "aot_eager"},
        {"connectivity": "full", "inner": "aot_eager"},
    ),
}
"""What the error has to say, and the options of both ranks; graph and collectives are the same."""


def test_ranks_with_other_options(run: Any, folder: Path, tell: Tell) -> None:
    """One after the other in the same processes: no mismatch gets into the way of what comes behind it."""
    scenes = [(step, (tuple({"options": options} for options in pair),)) for pair in DIFFERENT.values()]
    *outcomes, clean = run(*scenes, (step, (({}, {}),)))
    for (expected, pair), ranks in zip(DIFFERENT.items(), outcomes, strict=True):
        tell(expected.split(":")[0] + " differs between ranks", f"options {pair}", ranks, disk_state(folder))
        for outcome in ranks:
            assert outcome.ended == "OptionsMismatchError", outcome
            assert "OrderMismatchError" in outcome.bases
            theirs = expected if outcome.rank == 0 else _turned(expected)
            assert theirs in outcome.text, (theirs, outcome)
    assert [(outcome.ended, outcome.value) for outcome in clean] == [(FINE, True)] * 2, clean


def _turned(text: str) -> str:
    """What the other rank says: itself first."""
    name, _, values = text.partition(": rank 0 has ")
    ours, both, theirs = values.partition(", rank 1 has ")
    return f"{name}: rank 1 has {theirs}, rank 0 has {ours}" if both else f"{name}: rank 1 has "


def test_ranks_with_other_graphs(run: Any, folder: Path, tell: Tell) -> None:
    deeper, other = {"exchanges": 3}, {"reduces": True}
    layers, order, clean = run(
        (step, (({}, deeper),)),
        (step, (({}, other),)),
        (step, (({}, {}),)),
    )
    tell("another number of layers", "2 all-to-alls on rank 0, 3 on rank 1", layers, disk_state(folder))
    tell("control flow by rank", "an all-reduce in place of the first all-to-all on rank 1", order, disk_state(folder))
    for outcome in [*layers, *order]:
        assert outcome.ended == "OrderMismatchError", outcome
        assert "would launch different collectives" in outcome.text
    assert all("> 2: " in outcome.text for outcome in layers)
    assert all("> 0: all_reduce sum float32" in outcome.text for outcome in order)
    assert [(outcome.ended, outcome.value) for outcome in clean] == [(FINE, True)] * 2, clean


def test_a_rank_runs_a_graph_without_collectives(run: Any, folder: Path, tell: Tell) -> None:
    ((waiting, other),) = run((step, (({"timeout": 3.0}, {"silent": True}),)))
    tell("control flow by rank", "no collectives on rank 1; timeout 3 s", [waiting, other], disk_state(folder))
    assert other.ended == FINE, other
    assert waiting.ended == "RankFailedError", waiting
    assert "for rank 1, to run a graph with these collectives" in waiting.text


FAILING = [
    (place, direction, number)
    for place in (USERS_PASS, OUR_PASS, KERNELS, INDUCTOR)
    for number, direction in enumerate(("forward", "backward"), 1)
]


def test_a_compile_fails_on_one_rank(run: Any, folder: Path, tell: Tell) -> None:
    """The other one waits in the store and hears of it; then all of it once more in the same processes, and fine."""
    scenes, faulty = [], []
    for index, (place, direction, number) in enumerate(FAILING):
        # another graph for the ranks: one that they have compared already is not compared again
        options = {"memory_increase": 0.1 + index / 100}
        wishes: list[dict[str, Any]] = [{"options": options}, {"options": options}]
        faulty.append(index % 2)
        wishes[index % 2] |= {"label": f"{place} {direction}", "fault": Fault(place, "raise", number)}
        scenes.append((step, (tuple(wishes),)))
    *outcomes, clean = run(*scenes, (step, (({}, {}),)))
    for (place, direction, _), rank, ranks in zip(FAILING, faulty, outcomes, strict=True):
        tell(f"compile fails on rank {rank}, {direction}", f"ValueError in {place}", ranks, disk_state(folder))
        assert ON_PURPOSE in ranks[rank].text, ranks[rank]
        assert ranks[rank].ended != "RankFailedError"
        told = ranks[1 - rank]
        assert told.ended == "RankFailedError", told
        assert told.text.startswith(f"rank {rank} failed to compile: "), told
        assert ON_PURPOSE in told.text
    assert [(outcome.ended, outcome.value) for outcome in clean] == [(FINE, True)] * 2, clean


@pytest.mark.parametrize(
    ("what", "first"),
    [
        ("refused on all ranks", [{"options": {"connectivity": "nonsense"}}] * 2),
        ("other options", [{"options": {"connectivity": "mlp"}}, {}]),
    ],
)
def test_ranks_that_fail_together_may_go_on(what: str, first: Any, run: Any, folder: Path, tell: Tell) -> None:
    """Rank 0 is at the next graph while rank 1 still stands at the failure: that is old news then."""
    then = [{"options": {"connectivity": "none"}}] * 2
    (outcomes,) = run((step_again, (first, then)))
    tell(f"{what}, caught; rank 1 goes on later", "the store tells rank 1 when", outcomes, disk_state(folder))
    assert [(outcome.ended, outcome.value) for outcome in outcomes] == [(FINE, True)] * 2, outcomes


def test_a_rank_comes_when_the_other_one_has_given_up(run: Any, folder: Path, tell: Tell) -> None:
    """It must not run into a collective in which nobody will join it."""
    (outcomes,) = run((too_late, ()))
    tell("a rank comes too late", "timeout 0.5 s on rank 0", outcomes, disk_state(folder))
    assert [outcome.ended for outcome in outcomes] == ["RankFailedError"] * 2, outcomes
    assert outcomes[1].text.startswith("rank 0 gave up: RankFailedError: "), outcomes[1]


def test_a_failure_is_passed_on_to_other_process_groups(run: Any, folder: Path, tell: Tell) -> None:
    (outcomes,) = run((in_a_row, ()), ranks=3)
    tell("compile fails on rank 0 of 3", "rank 1 waits for 0, rank 2 for 1", outcomes, disk_state(folder))
    assert [outcome.ended for outcome in outcomes] == ["ValueError", "RankFailedError", "RankFailedError"], outcomes
    assert outcomes[2].text.count(ON_PURPOSE) == 1, outcomes[2]


def test_threads_with_groups_of_their_own(run: Any, folder: Path, tell: Tell) -> None:
    (outcomes,) = run((opposite_threads, ()))
    tell("two threads a rank, each with a group", "ranks begin with different ones", outcomes, disk_state(folder))
    assert [(outcome.ended, outcome.value) for outcome in outcomes] == [(FINE, [])] * 2, outcomes


def test_after_all_that_a_clean_run_on_the_same_caches(run: Any, folder: Path, tell: Tell) -> None:
    (outcomes,) = run((step, (({}, {}),)))
    tell("none: a clean run, last, on the caches of all runs above", "nothing", outcomes, disk_state(folder))
    assert [(outcome.ended, outcome.value) for outcome in outcomes] == [(FINE, True)] * 2, outcomes
    assert "readable" in disk_state(folder)
