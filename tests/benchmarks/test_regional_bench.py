# SPDX-License-Identifier: Apache-2.0
"""The benchmark of layers compiled one by one: its variants, its targets, and the page made of what is stored.

No compile or step is timed here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import regional
import torch
import torch.distributed as dist
from common import RecordsError
from overlap_bench import cells, settings, steps
from overlap_bench.cells import BY_LAYER, FULL, FULL_2, FULL_2_BY_LAYER, FULL_BY_LAYER, HAND, PLAIN, Cell
from overlap_bench.results import Result, Timing
from regional_bench import compiled, page, sharded, stepped
from regional_bench.compiled import PLAIN_LAYERS, REGIONAL, WHOLE, Compiled, First
from regional_bench.results import COMPILE, Store
from regional_bench.sharded import Sharded
from regional_bench.targets import judge, judge_compiles, judge_memory, judge_steps

from farskip_compile.costs import default_profile
from tests.benchmarks.overlap_samples import result

CELL = "deepseek_v3/training/balanced/2/1"
SECONDS = {PLAIN: 1.0, HAND: 1.0, BY_LAYER: 1.1, FULL: 0.8, FULL_2: 0.5, FULL_BY_LAYER: 0.88, FULL_2_BY_LAYER: 0.55}
"""Both by 1.25 and 2 times as fast as their plain form."""


def first(seconds: float) -> First:
    return First(prepared=1.0, model=seconds - 1.0, later=0.01, graphs=4, loaded=3)


def compile_of(form: str, layers: int, cold: float, phase: str = "prefill") -> Compiled:
    return Compiled(phase, form, layers, cold=first(cold), warm=first(cold / 10))


def cell(name: str = CELL, **seconds: float) -> Result:
    """A cell of the regional selection, made up."""
    times = SECONDS | {known: seconds[key] for key, known in NAMES.items() if key in seconds}
    found = result(name)
    kept = {"compute": 0.5, "communication": 0.4, **times}
    return dataclasses.replace(
        found,
        timings={one: Timing(time, 0.01) for one, time in kept.items()},
        raw=[
            dict.fromkeys(kept, [0.0] * 3),
            {one: [time] * 3 for one, time in kept.items()},
        ],  # the slowest rank counts
        exposed=dict.fromkeys(times, found.exposed[FULL]),
        peak_bytes=dict.fromkeys(times, 10**8),
        checks=[{"one": FULL_BY_LAYER, "other": HAND, "tensors": 1, "worst": "w", "error": seconds.get("error", 0.0)}],
        rate=None if "loopback" in seconds else found.rate,
    )


def held(form: str, megabytes: int, *, checkpointed: bool = False) -> Sharded:
    return Sharded(form, checkpointed, parameters=20_000_000, peak=megabytes * 10**6)


NAMES = {"full": FULL, "by_layer": FULL_BY_LAYER, "two": FULL_2_BY_LAYER, "plain_by_layer": BY_LAYER}


def met(verdicts: Any) -> dict[str, bool]:
    return {verdict.target: verdict.met for verdict in verdicts}


# Targets


def test_memory_is_over_the_plain_form_with_as_many_checkpoints() -> None:
    found = [held(sharded.PLAIN, 80), held(sharded.FULL, 84), held(sharded.FULL, 300, checkpointed=True)]
    (verdict,) = judge_memory({one.key: one for one in found})
    assert verdict.met
    assert verdict.of == "not checkpointed"
    assert not judge_memory({one.key: one for one in found[1:]})


@pytest.mark.parametrize(
    ("whole", "small", "fifth", "flat"),
    [(200.0, 32.0, True, True), (199.0, 32.0, False, True), (200.0, 31.9, True, False)],
)
def test_targets_of_compiles(whole: float, small: float, fifth: bool, flat: bool) -> None:
    found = [compile_of(WHOLE, 61, whole), compile_of(REGIONAL, 61, 40.0), compile_of(REGIONAL, 8, small)]
    found += [compile_of(PLAIN_LAYERS, 61, 1.0), compile_of(REGIONAL, 32, 1.0), compile_of(WHOLE, 8, 1.0)]
    verdicts = judge_compiles({one.key: one for one in found})
    assert met(verdicts) == {"a fifth": fifth, "flat": flat}
    assert ("missed by" in verdicts[0].found) is not fifth
    assert {verdict.of for verdict in verdicts} == {"prefill"}


def test_what_is_not_measured_is_neither_met_nor_missed() -> None:
    assert judge({}, []) == []
    only = compile_of(REGIONAL, 61, 40.0, "training")
    assert judge_compiles({only.key: only}) == []


@pytest.mark.parametrize(
    ("seconds", "one", "two"),
    [
        ({}, True, True),
        ({"by_layer": 1.1 / 1.24}, True, True),  # 24 % are 96 % of 25 %
        ({"by_layer": 1.1 / 1.23}, False, True),  # 92 %, though faster than the whole graph's 95 % in seconds
        ({"two": 1.1 / 1.9}, True, False),
        ({"full": 1.05, "by_layer": 1.155}, True, True),  # both lose as much
        ({"full": 1.05, "by_layer": 1.17}, False, True),
        ({"plain_by_layer": 1.0}, False, False),  # the plain form got faster, and ours did not
    ],
)
def test_gains_are_over_the_own_plain_form(seconds: dict[str, float], one: bool, two: bool) -> None:
    found = met(judge_steps(cell(**seconds)))
    assert found == {f"gain, {FULL_BY_LAYER}": one, f"gain, {FULL_2_BY_LAYER}": two, "results": True}


def test_results_and_the_network_are_judged() -> None:
    assert met(judge_steps(cell(error=1e-3)))["results"] is False
    assert met(judge_steps(cell(error=float("nan"))))["results"] is False
    assert met(judge_steps(cell(loopback=1)))["network"] is False


# The file and the page


@pytest.fixture
def store(tmp_path: Path) -> Store:
    facts = {"machine": "a machine", "versions": "torch 9", "command": "python x"}
    made = Store(tmp_path / "regional.json", {COMPILE: facts})
    made.add(compile_of(REGIONAL, 61, 30.0))
    made.add(compile_of(WHOLE, 61, 200.0))
    return made


def test_the_file_holds_what_was_added_last(store: Store) -> None:
    assert store.path is not None
    store.add(cell())
    store.add(compile_of(REGIONAL, 61, 25.0))
    again = Store.load(store.path)
    assert again == store
    assert again.compiles["prefill", REGIONAL, 61].cold.seconds == 25.0
    assert [one.form for one in again.in_order()] == [WHOLE, REGIONAL]
    with pytest.raises(RecordsError, match="measure first"):
        Store.load(store.path.with_name("none.json"))


def test_the_page_is_made_of_the_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.add(cell(by_layer=0.99))
    for form, step in ((sharded.PLAIN, 80), (sharded.NONE, 84), (sharded.FULL, 86)):
        store.add(held(form, step))
    monkeypatch.setattr(regional, "PAGE", tmp_path / "regional.md")
    monkeypatch.setattr("sys.argv", ["regional.py", "--table", "--json", str(store.path)])
    assert regional.main() == regional.OK
    text = (tmp_path / "regional.md").read_text()
    for part in (
        "- machine: a machine\n- versions: torch 9\n- command: python x\n",
        "- met: prefill: a fifth: 30 s of 200 s, 0.150",
        f"- MISSED: {CELL}: gain, full, by layer: +11.1 % against +25.0 % of full",
        "| prefill | 61 | whole graph | 200.0 s | 1.0 s | 20.0 s | 1.000 | 1.000 | 10.0 ms | 4 | 3 |",
        "| prefill | 61 | regional | 30.0 s | 1.0 s | 3.0 s | 0.150 | 0.150 | 10.0 ms | 4 | 3 |",
        "| **full, by layer** | 990 ms | 10.0 ms | 1.111 x |",
        "- met: not checkpointed: memory, none, by layer: +4.0 % of 100.0 MB (at most +5%); of the step alone +5.0 %",
        "- MISSED: not checkpointed: memory, full, by layer: +6.0 % of 100.0 MB (at most +5%); of the step alone "
        "+7.5 %, missed by 1.0 points",
        "| full, by layer | none | 20.0 MB | 86.0 MB | 106.0 MB | +6.0 % | +7.5 % |",
        "- not measured: regional, 8 layers, prefill; ",
        "- not measured: `deepseek_v3/prefill/balanced/2/0.5`",
    ):
        assert (part in text) or (part.replace("regional, 8", "plain, by layer, 8") in text), part
    assert "Not measured yet" not in text
    monkeypatch.setattr("sys.argv", ["regional.py", "--table", "--json", str(tmp_path / "none.json")])
    assert regional.main() == regional.USAGE
    assert "measure first" in capsys.readouterr().err


def test_a_part_that_is_not_measured_is_said_to_be_missing(store: Store) -> None:
    text = page.page(store, "x.json")
    assert "Not measured yet: `python benchmarks/regional.py --steps`." in text
    assert "--compile`." not in text
    empty = page.page(Store(None), "x.json")
    assert empty.count("Not measured yet") == 3
    assert "Nothing that a target is for has been measured yet." in empty
    assert not any(line.startswith("|") for line in empty.splitlines())


def test_arguments() -> None:
    every = regional.arguments([])
    assert (every.compile, every.steps, every.json, every.default_file) == (True, True, regional.JSON, True)
    assert every.memory is True
    assert regional.arguments(["--compile"]).steps is False
    assert regional.arguments(["--memory"]).compile is False
    assert regional.arguments(["--smoke"]).json is None  # a small run never replaces what docs/ shows
    assert regional.arguments(["--repetitions", "3"]).effort.repetitions == 3
    assert every.effort.selection in cells.SELECTIONS
    with pytest.raises(SystemExit):
        regional.arguments(["--layers", "1"])


# What is measured


def test_what_is_measured() -> None:
    keys = compiled.tasks(compiled.PHASES, compiled.LAYERS)
    assert len(set(keys)) == len(keys) == 2 * 3 * 3
    assert keys[-1][1:] == (WHOLE, 61)  # the one that takes longest
    assert [str(one) for one in stepped.grid(["training"], [1.0])] == [CELL]
    assert len(stepped.grid()) == 4


def test_the_usual_variants_stay_what_they_were() -> None:
    wanted = settings.settings_of(Cell.parse(CELL).group, settings.SMOKE)
    usual = {*cells.TIMED} - steps.left_out(wanted)
    assert usual <= {*cells.ORDER}
    chosen = settings.settings_of(
        Cell.parse(CELL).group, dataclasses.replace(settings.SMOKE, selection=stepped.SELECTION)
    )
    for ratio in stepped.RATIOS:
        assert {*cells.TIMED} - steps.left_out(chosen, ratio) == {*SECONDS}


@pytest.fixture
def one_rank():
    torch.compiler.reset()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_the_variants_give_what_they_must_equal(one_rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of a tiny model, without Inductor. They share weights; each has layers of its own."""
    compile_ = torch.compile

    def without_inductor(model: Any, **given: Any) -> Any:
        backend = given.pop("backend", "inductor")
        return compile_(model, backend="eager" if backend == "inductor" else backend, **given)

    monkeypatch.setattr(torch, "compile", without_inductor)
    for options, name in ((cells.BACKEND, FULL_2), (cells.REGIONAL, FULL_2_BY_LAYER)):
        monkeypatch.setitem(options, name, cells.OURS[FULL])  # pieces need Inductor
    effort = dataclasses.replace(settings.SMOKE, selection=stepped.SELECTION, tokens=8, layers=2)
    wanted = settings.settings_of(Cell.parse(CELL).group, effort)
    model = steps.make_model(wanted, one_rank)
    step = steps.Step(wanted, 0, model)
    fixed, missing = steps.fixed_variants(model, wanted, one_rank)
    options = {"inner": "eager"}
    made = steps.profiled_variants(model, default_profile("cpu"), options, wanted, 1.0, one_rank)
    variants = {variant.name: variant for variant in (*fixed, *made)}
    assert missing == {}
    assert {*variants} == {*SECONDS}
    own = [variants[name].model for name in (PLAIN, BY_LAYER, FULL_BY_LAYER, FULL_2_BY_LAYER)]
    assert len({id(one) for one in own}) == 4
    assert len({one.lm_head.weight.data_ptr() for one in own}) == 1
    results = {name: step.results(variant) for name, variant in variants.items()}
    equal = {(one, other) for one, other in cells.COMPARED if one in variants}
    assert {one for one, _ in equal} == {*SECONDS} - {PLAIN, HAND}
    for one, other in equal:
        assert steps.compare(results[one], results[other])["error"] < 1e-5, one
    assert steps.compare(results[FULL_BY_LAYER], results[PLAIN])["error"] > 1e-3


def test_each_form_is_compiled_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import farskip_compile

    called: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda model, **given: called.append((WHOLE, given["backend"])) or "whole")

    class Layer:
        def compile(self, **given: Any) -> None:
            called.append((PLAIN_LAYERS, given["backend"]))

    model = type("Model", (), {"layers": [Layer(), Layer()]})()
    with monkeypatch.context() as patched:
        patched.setattr("regional_bench.compiled.OPTIONS", {})
        assert compiled.asked(WHOLE, model) == "whole"
        assert compiled.asked(PLAIN_LAYERS, model) is model
        assert called == [(WHOLE, "farskip"), (PLAIN_LAYERS, "inductor"), (PLAIN_LAYERS, "inductor")]
        with pytest.raises(farskip_compile.FarSkipError, match="no list of modules"):
            compiled.asked(REGIONAL, torch.nn.Linear(1, 1))
