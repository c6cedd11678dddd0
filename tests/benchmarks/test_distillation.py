"""The experiment of benchmarks/distillation.py: its rows, its arithmetic, its page; and one row, run for real."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("datasets")

import distillation
from common import RecordsError
from distill_bench import results as kept_results
from distill_bench import run_row as runner
from distill_bench.architectures import MODELS, new_model, parameters
from distill_bench.judge import compiled_with_counts, fullest, moved
from distill_bench.page import write_page, write_plot
from distill_bench.results import (
    FrontPoint,
    FrontResult,
    Judged,
    Result,
    Results,
    judge_healing,
    judge_targets,
    row_text,
    targets_text,
)
from distill_bench.rows import QUICK, SMOKE, WHOLE, Row, rows_of
from distill_bench.run_row import run_rows

from farskip_compile.config import FarSkipConfig

# Rows


@pytest.mark.parametrize("scale", [WHOLE, QUICK, SMOKE], ids=lambda scale: scale.name)
def test_rows_come_after_those_that_they_need_and_have_names_of_their_own(scale):
    for model in MODELS:
        seen: set[str] = set()
        for row in rows_of(model, scale):
            assert {*row.needs} <= seen
            assert row.name not in seen
            seen.add(row.name)


def test_ranges_of_the_last_layers():
    assert [row.layers for row in rows_of("qwen3_moe", QUICK) if row.layers] == [(2, 2), (1, 2)]
    assert [WHOLE.last(part) for part in (0.5, 0.75, 0.9)] == [(3, 5), (2, 5), (1, 5)]


def test_what_may_be_learnt_from():
    assert WHOLE.heal_steps() <= 0.1 * WHOLE.steps
    assert QUICK.heal_steps() <= 0.1 * QUICK.steps


@pytest.mark.parametrize("model", MODELS)
def test_size(model):
    assert 1e6 <= parameters(new_model(model, WHOLE, 0)) <= 4e6


# Arithmetic


def result(name: str, loss: float, kind="healed", tokens=100, model="deepseek_v3", **more) -> Result:
    row = Row(model, name, kind, "text")
    judged = {source: Judged(loss + extra, 0.1, 0.9) for source, extra in (("held_out", 0.0), ("other_domain", 1.0))}
    history = [(0, 9.0, None), (10, loss, None)]
    return Result(row, "", judged, 1.5, 0.1, 15, 10, 10, tokens, 1.0, 1_000_000, **({"history": history} | more))


def front(freed: float, measured: float) -> FrontResult:
    row = Row("deepseek_v3", "front", "front", "nothing")
    none, plan, whole = (
        FrontPoint((), 0.0, 0.0, 0.1, 0.0),
        FrontPoint(("moe.3",), 0.1, measured, 0.6, freed),
        FrontPoint(("moe.3", "attention.2"), 0.5, 0.4, 0.7, 1.0),
    )
    return FrontResult(row, "", [none, plan], 1, whole, {"moe.3": 0.1, "attention.2": 0.4}, {"moe.3": ["a3"]}, 4, 1.0)


def made_up(healed=(3.02, 3.02), scratch=(3.02,), front_is=(0.9, 0.1), tokens=10) -> Results:
    rows = [result("teacher", 3.0, "teacher", samples=[("a prompt", "goes `on`")])]
    rows += [result(f"healed-full@{seed}", loss, tokens=tokens) for seed, loss in enumerate(healed)]
    rows += [result(f"scratch@{seed}", loss, "scratch") for seed, loss in enumerate(scratch)]
    return Results({"machine": "none", "healing": "7 steps"}, rows, [front(*front_is)])


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        (made_up(), [True, True, True, True]),
        (made_up(healed=(3.0, 3.05)), [True, True, True, True]),  # the mean counts
        (made_up(healed=(3.02, 3.05)), [False, True, True, True]),
        (made_up(tokens=11), [True, False, True, True]),
        (made_up(scratch=(3.0301,)), [True, True, False, True]),
        (made_up(front_is=(0.79, 0.1)), [True, True, True, False]),
        (made_up(front_is=(0.9, 0.21)), [True, True, True, False]),
        (made_up(healed=(), scratch=()), [False, False, False, True]),
    ],
)
def test_targets(results, expected):
    targets = judge_targets(results)
    assert [target.met for target in targets] == expected
    assert targets_text(targets).count("MISSED") == expected.count(False)


@pytest.mark.parametrize(
    ("healed", "unhealed", "by_text", "met"),
    [(0.1, 0.3, 0.2, True), (0.3, 0.2, 0.4, False), (0.3, 0.4, 0.2, False)],
)
def test_healing_must_heal_at_any_scale(healed, unhealed, by_text, met):
    kls = {"healed-full@0": healed, "unhealed-full": unhealed, "healed-by-text-full@0": by_text}
    rows = [
        dataclasses.replace(result(name, 3.0), judged={"held_out": Judged(3.0, kl, 0.9)}) for name, kl in kls.items()
    ]
    (target,) = judge_healing(Results({}, rows, []))
    assert target.met == met


def test_without_shared_experts_more_is_allowed():
    rows = [result("teacher", 3.0, "teacher", model="qwen3_moe"), result("healed-full@0", 3.044, model="qwen3_moe")]
    assert judge_targets(Results({}, rows, []))[0].met
    rows[1] = result("healed-full@0", 3.046, model="qwen3_moe")
    assert not judge_targets(Results({}, rows, []))[0].met


def test_results_on_disk(tmp_path):
    path = tmp_path / "results.json"
    made_up().write(path)
    assert Results.load(path) == made_up()
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 0}))
    with pytest.raises(RecordsError, match="schema 0"):
        Results.load(path)
    with pytest.raises(RecordsError, match="measure first"):
        Results.load(tmp_path / "none.json")


def test_page_and_picture(tmp_path):
    write_plot(made_up(), tmp_path / "picture.png")
    write_page(made_up(healed=(3.02, 3.036)), tmp_path / "page.md", Path("results.json"), tmp_path / "picture.png")
    page = (tmp_path / "page.md").read_text()
    assert "| healed-full | 15 | 3.028 ± 0.008 | +0.93% |" in page
    assert "| > | 1 | 60% | 90% | 0.1000 | 0.1000 |" in page
    assert "| all | 2 | 70% | 100% | 0.5000 | 0.4000 |" in page
    assert "healed full within 1.0% of the teacher's held-out loss | met: +0.93% |" in page
    assert "- teacher: `goes 'on'`" in page
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_page_in_docs_is_that_of_its_file(tmp_path):
    write_page(Results.load(distillation.JSON), tmp_path / "page.md", distillation.JSON, distillation.PICTURE)
    assert (tmp_path / "page.md").read_text() == distillation.PAGE.read_text()


# Expert load


@pytest.mark.parametrize("connectivity", ["none", "full"])
def test_load_is_what_the_routers_chose(connectivity):
    model = new_model("qwen3_moe", SMOKE, 0).eval()
    chosen = torch.zeros(SMOKE.layers, 8)

    def count(layer, inputs):
        chosen[layer] += torch.bincount(inputs[1].flatten(), minlength=8)

    ids = torch.randint(0, SMOKE.vocabulary, (4, 32), generator=torch.Generator().manual_seed(0))
    hooks = [
        module.mlp.experts.register_forward_pre_hook(lambda _, inputs, layer=layer: count(layer, inputs))
        for layer, module in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    compiled, counting = compiled_with_counts(model, FarSkipConfig(connectivity=connectivity, inner="eager"))
    with torch.no_grad():
        for half in ids.split(2):
            compiled(half, use_cache=False)
    load = torch.stack(counting.load)
    assert load.sum(-1).tolist() == [4 * 32 * 2] * SMOKE.layers
    assert torch.equal(load.float(), chosen) == (connectivity == "none")
    assert fullest(counting.load) == pytest.approx(float((load.amax(-1) / 32).mean()))
    assert moved(counting.load, list(load)) == 0.0


def test_how_much_has_moved():
    assert moved([torch.tensor([1.0, 3.0])], [torch.tensor([2.0, 2.0])]) == 0.25


def test_what_a_kept_result_depends_on(monkeypatch):
    rows = {row.name: row for row in rows_of("qwen3_moe", SMOKE)}

    def digests() -> dict[str, str]:
        return {name: kept_results.digest_of(row, SMOKE) for name, row in rows.items()}

    before = digests()
    assert len({*before.values()}) == len(rows)
    monkeypatch.setattr(kept_results, "RANKS", 16)
    assert {name for name, digest in digests().items() if digest != before[name]} == {"front", "healed-plan"}


# Rows in processes


def note(folder: Path, row: Row) -> str:
    before = sorted(path.name for path in folder.iterdir())
    if row.name == "bad":
        raise ValueError("bad row")
    (folder / row.name).write_text(" ".join(before))
    return row.name


def simple(name: str, *needs: str) -> Row:
    return Row("model", name, "healed", "text", needs=needs)


def test_rows_wait_for_what_they_need_and_a_failure_ends_it(tmp_path, monkeypatch):
    """In processes that are forked from the server of the tests' ranks: the start of others takes longer than this."""
    server = torch.multiprocessing.get_context("forkserver")
    monkeypatch.setattr(runner, "multiprocessing", SimpleNamespace(get_context=lambda method: server))
    rows = [simple("one"), simple("two", "one"), simple("three"), simple("four", "one", "two", "three")]
    work = partial(note, tmp_path)
    run = partial(run_rows, workers=2, first=(tmp_path / "first").touch, work=work)
    assert sorted(run(rows)) == ["four", "one", "three", "two"]
    assert all("first" in (tmp_path / row.name).read_text() for row in rows)
    assert {"one"} <= {*(tmp_path / "two").read_text().split()}
    assert {"one", "two", "three"} <= {*(tmp_path / "four").read_text().split()}
    with pytest.raises(ValueError, match="bad row"):
        list(run([simple("bad"), simple("behind", "bad")]))
    assert not (tmp_path / "behind").exists()


# One row


def test_rows_are_run_once(tmp_path, monkeypatch):
    scale = dataclasses.replace(SMOKE, steps=2, layers=2)
    teacher = rows_of("qwen3_moe", scale)[0]
    found = runner.run_row(tmp_path, scale, teacher)
    assert isinstance(found, Result)
    assert (found.steps, found.tokens, found.rewired) == (2, 2 * 8 * 127, 0)
    assert found.judged["held_out"].kl == 0.0
    assert found.judged["held_out"].top1 == 1.0
    assert [step for step, _, _ in found.history] == [0, 1, 2]
    assert len(found.samples) == 3
    row = next(row for row in rows_of("qwen3_moe", scale) if row.name == "unhealed-full")
    rewired = runner.run_row(tmp_path, scale, row)
    assert isinstance(rewired, Result)
    assert rewired.rewired == 3  # both MoEs, and the second attention
    assert rewired.judged["held_out"].kl > 0.0
    assert rewired.tokens == 0
    for one, row_again in ((found, teacher), (rewired, row)):
        assert kept_results.kept(tmp_path / "rows", row_again, scale) == one
    monkeypatch.setattr(runner, "text_data", None)  # nothing is done again
    assert runner.run_row(tmp_path, scale, teacher) == found
    assert kept_results.kept(tmp_path / "rows", teacher, dataclasses.replace(scale, steps=3)) is None
    assert row_text(rewired, found).startswith("qwen3_moe    unhealed-full")
