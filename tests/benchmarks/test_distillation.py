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
from distill_bench.corpora import documents
from distill_bench.judge import compare, compiled_with_counts, fullest, judged, moved
from distill_bench.page import write_page
from distill_bench.plot import write_plot
from distill_bench.results import SCHEMA, FrontPoint, FrontResult, Judged, Result, Results
from distill_bench.rows import BEST, FOLD_PAPER, PAPER, QUICK, RECIPES, SMOKE, WHOLE, Row, rows_of
from distill_bench.run_row import run_rows
from distill_bench.targets import judge_healing, judge_targets, row_text, summary, targets_text
from distill_bench.texts import BEGINNING, split

from farskip_compile.config import FarSkipConfig

# Rows


@pytest.mark.parametrize("scale", [WHOLE, QUICK, SMOKE], ids=lambda scale: scale.name)
def test_rows_come_after_those_that_they_need_and_have_names_of_their_own(scale):
    keys = []
    for model in MODELS:
        for corpus in scale.corpora:
            seen: set[str] = set()
            for row in rows_of(model, corpus, scale):
                assert {*row.needs} <= seen
                seen.add(row.name)
                keys.append(row.key)
    assert len({*keys}) == len(keys)


def test_what_the_experiment_must_hold():
    rows = rows_of("qwen3_moe", "dictionary", WHOLE)
    teachers = [row for row in rows if row.kind == "teacher"]
    assert [row.seed for row in teachers] == [0, 1, 2]
    for seed in (0, 1, 2):
        names = {row.label for row in rows if row.seed == seed}
        assert {"unhealed-full", "folded-full", "paper-full", "fold+paper-full", "best-full", "control"} <= names
    for label in ("paper-full", "best-full", "control"):
        assert {row.part for row in rows if row.label.startswith(label)} == {0.03, 0.1, 0.3}
    best = {row.connectivity for row in rows if row.label.startswith("best-")}
    assert best == {"full", "attention", "mlp", "lag2", "ladder", "plan"}
    assert {row.label for row in rows_of("qwen3_moe", "kernel", WHOLE)} >= {"best-full", "control", "folded-full"}


@pytest.mark.parametrize("scale", [WHOLE, QUICK], ids=lambda scale: scale.name)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_no_more_is_learned_from_than_said(scale, recipe):
    for part in (0.03, 0.1, 0.3):
        trained = scale.heal_steps(part, recipe) * recipe.batch * (scale.sequence - 1)
        calibrated = recipe.fold * scale.calibration * scale.batch * scale.sequence
        most = part * scale.steps * scale.batch * (scale.sequence - 1)
        assert most - recipe.batch * scale.sequence < trained + calibrated <= most + 1e-6


def test_healing_does_not_begin_as_its_teacher_did():
    """Its seed decides in which order it reads the text."""
    row = next(row for row in rows_of("qwen3_moe", "dictionary", WHOLE) if row.label == "paper-full")
    teacher = rows_of("qwen3_moe", "dictionary", WHOLE)[0]
    config = FarSkipConfig()
    seeds = [runner.options_of(one, WHOLE, config, Path("out"))["seed"] for one in (teacher, row)]
    assert seeds[0] == 0
    assert seeds[1] not in (0, 1, 2)


@pytest.mark.parametrize("model", MODELS)
def test_size(model):
    assert 4e5 <= parameters(new_model(model, WHOLE, 0)) <= 4e6


# Text


def test_the_split_is_by_document_and_spread_over_the_source():
    texts = [f"{number:04} " + "x" * (number % 7 * 1000) for number in range(2000)]
    found = split(texts, {"judged": 60_000, "chosen": 30_000}, 2_000_000)
    parts = {part: [int(text[:4]) for text in some] for part, some in found.items()}
    everything = [number for some in parts.values() for number in some]
    assert len({*everything}) == len(everything)
    held_out = parts["judged"] + parts["chosen"]
    for quarter in range(4):  # the source is sorted: each quarter of it has its share
        assert 0.1 < sum(quarter * 500 <= number < (quarter + 1) * 500 for number in held_out) / len(held_out) < 0.4
    assert 60_000 <= sum(map(len, found["judged"])) < 60_000 + BEGINNING
    assert sum(map(len, found["train"])) >= 2_000_000
    again = split(texts[::-1], {"judged": 60_000, "chosen": 30_000}, 2_000_000)
    assert again == found  # the order of the source decides nothing


def test_documents_of_python(tmp_path):
    texts, about = documents("topics", tmp_path)
    assert len({*texts}) == len(texts) > 50
    assert f"{len(texts)} documents" in about


def test_judging_is_what_the_formulas_say():
    student = torch.tensor([[[0.0, 1.0, 2.0], [1.0, 0.0, 0.0], [5.0, 5.0, 5.0]]])
    teacher = torch.tensor([[[0.0, 1.0, 3.0], [0.0, 1.0, 0.0], [7.0, 0.0, 0.0]]])
    p, q = teacher[0, :2].softmax(-1), student[0, :2].softmax(-1)  # nothing is predicted from the last position
    own, other, kl, same = compare(student, teacher, torch.tensor([[2, 0]]))
    assert own == pytest.approx(float(-(q[0, 2].log() + q[1, 0].log()) / 2))
    assert other == pytest.approx(float(-(p[0, 2].log() + p[1, 0].log()) / 2))
    assert kl == pytest.approx(float((p * (p / q).log()).sum() / 2))
    assert same == 0.5
    found = judged([(2.0, 1.0, 0.5, 1.0), (4.0, 2.0, 0.1, 0.0)], 3.0)
    assert (found.loss, found.kl, found.top1) == pytest.approx((3.0, 0.3, 0.5))
    assert found.bits == pytest.approx(3.0 / 0.6931472 / 3.0)
    assert found.error == pytest.approx(0.5)  # of 1 and 2


# Arithmetic


def result(name: str, kind="healed", loss=3.0, kl=0.0, connectivity="full", model="deepseek_v3", **more) -> Result:
    part = more.pop("part", 0.1)
    recipe = name.partition("-")[0] if kind == "healed" else ""
    row = Row(model, "dictionary", name, kind, int(name.partition("@")[2]), connectivity, recipe, part)
    judged = {
        source: Judged(loss + extra, kl, 0.9, 2.0, 0.003) for source, extra in (("held_out", 0), ("elsewhere", 1))
    }
    defaults = {"history": [(0, 9.0, None), (10, loss, None)], "tokens": 100}
    defaults |= more
    tokens = 1000 * defaults.pop("tokens")
    return Result(row, "", judged, 1.5, 0.1, 15, 10, 10, tokens, 1.0, 1_000_000, **defaults)


def front(freed: float) -> FrontResult:
    row = Row("deepseek_v3", "dictionary", "front@0", "front")
    none, plan, whole = (
        FrontPoint((), 0.0, 0.0, 0.1, 0.0),
        FrontPoint(("moe.3",), 0.1, 0.1, 0.6, freed),
        FrontPoint(("moe.3", "attention.2"), 0.5, 0.4, 0.7, 1.0),
    )
    return FrontResult(row, "", [none, plan], 1, whole, {"moe.3": 0.1, "attention.2": 0.4}, {"moe.3": ["a3"]}, 4, 1.0)


GOOD: dict[str, float] = {"folded": 0.2, "freed": 0.8, "plan": 0.13, "tokens": 10}


def made_up(losses=(3.02, 3.03), kls=(0.02, 0.04), **more) -> Results:
    """Two teachers; rows of the second one are worse in everything, and so is their teacher."""
    more = {**GOOD, **more}
    rows = []
    for seed, (loss, kl) in enumerate(zip(losses, kls, strict=True)):
        rows += [
            result(f"teacher@{seed}", "teacher", 3.0 + 0.01 * seed, samples=[("a prompt", "goes `on`")]),
            result(f"unhealed-full@{seed}", "unhealed", 3.4, 0.4 + 0.2 * seed),
            result(f"folded-full@{seed}", "folded", 3.2, more["folded"], tokens=4),
            result(f"best-full@{seed}", "healed", loss, kl, tokens=more["tokens"]),
            result(f"best-full-30@{seed}", "healed", loss, kl, tokens=30, part=0.3),
            result(f"control@{seed}", "control", 2.99, 0.01, "none", tokens=10),
        ]
    rows += [
        result("half@0", "half", 3.15, 0.3, "none"),
        result("text-full@0", "healed", 3.1, 0.3),
        result("unhealed-plan@0", "unhealed", 3.2, 0.2, "plan"),
        result("folded-plan@0", "folded", 3.1, more["plan"], "plan"),
        result("best-plan@0", "healed", 3.01, 0.01, "plan"),
    ]
    return Results({"machine": "none", "batches": 32}, rows, [front(more["freed"])])


def test_rows_are_compared_with_their_own_teacher():
    rows = made_up().of(("deepseek_v3", "dictionary"))
    found = summary(rows, "best-full")
    assert found.above.mean == pytest.approx((3.02 / 3.0 + 3.03 / 3.01) / 2 - 1)
    assert found.above.deviation == pytest.approx(abs(3.02 / 3.0 - 3.03 / 3.01) / 2**0.5)
    assert found.repaired.mean == pytest.approx(((1 - 0.02 / 0.4) + (1 - 0.04 / 0.6)) / 2)
    assert found.error == pytest.approx((0.003 / 3.0 + 0.003 / 3.01) / 2)
    assert found.tokens == pytest.approx(0.1)
    assert summary(rows, "best-plan").repaired.mean == pytest.approx(1 - 0.01 / 0.2)  # of what the plan damages
    assert summary(rows, "control").repaired is None
    assert summary(rows, "nothing") is None


@pytest.mark.parametrize(
    ("results", "missed"),
    [
        (made_up(), []),
        (made_up(losses=(3.025, 3.04)), []),  # 0.83 and 1.00 %
        (made_up(losses=(3.04, 3.04)), [0]),
        (made_up(kls=(0.02, 0.09)), [1]),  # 95 and 85 %
        (made_up(tokens=11), [2]),
        (made_up(folded=0.3), [3]),  # 25 and 50 %
        (made_up(freed=0.79), [4]),
        (made_up(plan=0.14), [4]),
        (Results({}, [result("teacher@0", "teacher")], []), [0, 1, 2, 3, 4]),
    ],
)
def test_targets(results, missed):
    targets = judge_targets(results)
    assert [number for number, target in enumerate(targets) if not target.met] == missed
    assert targets_text(targets).count("MISSED") == len(missed)


@pytest.mark.parametrize("model", MODELS)
def test_without_shared_experts_more_is_allowed(model):
    rows = [result("teacher@0", "teacher", model=model), result("best-full@0", loss=3.033, model=model)]
    assert judge_targets(Results({}, rows, []))[0].met == (model == "qwen3_moe")  # 1.1 %


@pytest.mark.parametrize(
    ("kls", "met"),
    [
        ({"best": 0.1, "folded": 0.2, "unhealed": 0.3, "text": 0.25}, True),
        ({"best": 0.2, "folded": 0.1, "unhealed": 0.3, "text": 0.25}, False),
        ({"best": 0.1, "folded": 0.4, "unhealed": 0.3, "text": 0.25}, False),
        ({"best": 0.1, "folded": 0.2, "unhealed": 0.3, "text": 0.05}, False),
        ({"best": 0.1, "folded": 0.2, "unhealed": 0.3}, False),
    ],
)
def test_healing_must_heal_at_any_scale(kls, met):
    kinds = {"folded": "folded", "unhealed": "unhealed"}
    rows = [result("teacher@0", "teacher")]
    rows += [result(f"{name}-full@0", kinds.get(name, "healed"), kl=kl) for name, kl in kls.items()]
    (target,) = judge_healing(Results({}, rows, []))
    assert target.met == met


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
    write_page(made_up(losses=(3.02, 3.0402)), tmp_path / "page.md", Path("results.json"), tmp_path / "picture.png")
    page = (tmp_path / "page.md").read_text()
    # 5 and 6.7 % of the damage are left; 0.67 and 1.00 % above their teachers
    assert (
        "| best-full | 10 k | 0.0300 ± 0.0141 | 94.2% ± 1.2% | 90.0% | 2.000 ± 0.000 | +0.83% ± 0.24% | 0.10% |" in page
    )
    assert "| control | 10 k | 0.0100 ± 0.0000 |  | 90.0% |" in page
    assert "| plan | 15 | 0.2000 | 0.1300 | 0.0100 | 35.0% | 95.0% |" in page
    assert "| > | 1 | 60% | 90% |" not in page
    assert "| > | 1 | 60% | 80% | 0.1000 | 0.1000 |" in page
    assert "| all | 2 | 70% | 100% | 0.5000 | 0.4000 |" in page
    assert "its KL is 32% of that of all of them" in page
    assert "With half of them, its loss is 5.0% higher" in page
    assert "at most 1.0% above the teacher's held-out loss | met: +0.83% |" in page
    assert "- teacher: `goes 'on'`" in page
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_page_in_docs_is_that_of_its_file(tmp_path):
    if (
        json.loads(distillation.JSON.read_text())["schema"] < SCHEMA
    ):  # until the experiment is run anew, the page says so
        assert "Made by an earlier version of `benchmarks/distillation.py`" in distillation.PAGE.read_text()
        return
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
    rows = {row.name: row for row in rows_of("qwen3_moe", "topics", SMOKE)}

    def digests() -> dict[str, str]:
        return {name: kept_results.digest_of(row, SMOKE) for name, row in rows.items()}

    before = digests()
    assert len({*before.values()}) == len(rows)
    monkeypatch.setattr(kept_results, "RANKS", 16)
    changed = {name for name, digest in digests().items() if digest != before[name]}
    assert changed == {"front@0", "unhealed-plan@0", "folded-plan@0", "best-plan@0"}
    monkeypatch.undo()
    monkeypatch.setitem(kept_results.RECIPES, "best", dataclasses.replace(BEST, stream=1.0))
    changed = {name for name, digest in digests().items() if digest != before[name]}
    assert changed == {"best-full@0", "best-plan@0"}
    monkeypatch.undo()
    more = dataclasses.replace(SMOKE, calibration=2)  # what decides nothing about a teacher
    same = {name for name, row in rows.items() if kept_results.digest_of(row, more) == before[name]}
    assert same == {"teacher@0"}


# Rows in processes


def note(folder: Path, row: Row) -> str:
    before = sorted(path.name for path in folder.iterdir())
    if row.name == "bad":
        raise ValueError("bad row")
    (folder / row.name).write_text(" ".join(before))
    return row.name


def simple(name: str, *needs: str) -> Row:
    return Row("model", "topics", name, "healed", needs=needs)


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
    rows = {row.label: row for row in rows_of("qwen3_moe", "topics", scale)}
    found = runner.run_row(tmp_path, scale, rows["teacher"])
    assert isinstance(found, Result)
    assert (found.steps, found.tokens, found.rewired) == (2, 2 * 8 * 127, 0)
    assert found.judged["held_out"].kl == pytest.approx(0.0, abs=1e-9)
    assert found.judged["held_out"].top1 == 1.0
    assert [step for step, _, _ in found.history] == [0, 1, 2]
    assert len(found.samples) == 2
    rewired = runner.run_row(tmp_path, scale, rows["unhealed-full"])
    assert isinstance(rewired, Result)
    assert rewired.rewired == 3  # both MoEs, and the second attention
    assert rewired.judged["held_out"].kl > 0.0
    assert rewired.judged["held_out"].error > 0.0 or scale.judged == scale.batch
    assert rewired.tokens == 0
    for one, label in ((found, "teacher"), (rewired, "unhealed-full")):
        assert kept_results.kept(tmp_path / "rows", rows[label], scale) == one
    monkeypatch.setattr(runner, "text_data", None)  # nothing is done again
    assert runner.run_row(tmp_path, scale, rows["teacher"]) == found
    longer = dataclasses.replace(scale, steps=3)
    assert kept_results.kept(tmp_path / "rows", rows["teacher"], longer) is None
    assert row_text(rewired, found, None).startswith("qwen3_moe-topics       unhealed-full")


@pytest.mark.parametrize("recipe", [PAPER, FOLD_PAPER, BEST], ids=lambda recipe: recipe.name)
def test_recipes_are_options_of_a_distillation(recipe):
    row = next(row for row in rows_of("qwen3_moe", "topics", SMOKE) if row.label == f"{recipe.name}-full")
    made = runner.configuration(row, SMOKE, FarSkipConfig(), None)
    assert made.learning_rate == recipe.learning_rate
    assert getattr(made, "fold", False) == recipe.fold
    assert getattr(made, "stream_weight", 0.0) == recipe.stream
