# SPDX-License-Identifier: Apache-2.0
"""The experiment of benchmarks/distillation.py: its rows, its text, its judgement; and one row, run for real."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

pytest.importorskip("datasets")

import distillation
from distill_bench import results as kept_results
from distill_bench import run_row as runner
from distill_bench.architectures import MODELS, new_model, parameters
from distill_bench.corpora import documents
from distill_bench.judge import compare, compiled_with_counts, fullest, judged, moved
from distill_bench.results import Result
from distill_bench.rows import BEST, FOLD_PAPER, LARGER, PAPER, QUICK, RECIPES, SMOKE, WHOLE, Row, rows_of
from distill_bench.run_row import run_rows
from distill_bench.targets import row_text
from distill_bench.texts import BEGINNING, split

from farskip_compile.compiler.config import FarSkipConfig

# Rows


@pytest.mark.parametrize("scale", [WHOLE, LARGER, QUICK, SMOKE], ids=lambda scale: scale.name)
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
        more = {"teacher", "unhealed-full", "folded-full", "best-full"}
        assert more < names if seed == 0 else more == names
    assert rows_of("deepseek_v3", "kernel", WHOLE) == []
    assert {"fold+paper-full", "control", "text-full"} <= {row.label for row in rows}
    for label in ("paper-full", "best-full"):
        assert {row.part for row in rows if row.label.startswith(label)} == {0.03, 0.1, 0.3}
    best = {row.connectivity for row in rows if row.label.startswith("best-")}
    assert best == {"full", "attention", "mlp", "lag2", "plan"}
    with_shared = {row.connectivity for row in rows_of("deepseek_v3", "dictionary", WHOLE) if row.kind == "healed"}
    assert with_shared == {"full", "ladder", "plan"}
    short = {"teacher", "unhealed-full", "folded-full", "paper-full", "best-full", "control"}
    assert {row.label for row in rows_of("qwen3_moe", "kernel", WHOLE)} == short
    assert {row.label for row in rows_of("deepseek_v3", "dictionary", LARGER)} == short
    assert {row.label for row in rows_of("deepseek_v3", "dictionary", WHOLE)} > {*short, "best-full-3", "best-plan"}


@pytest.mark.parametrize("scale", [WHOLE, QUICK], ids=lambda scale: scale.name)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_no_more_is_learned_from_than_said(scale, recipe):
    for part in (0.03, 0.1, 0.3):
        trained = scale.heal_steps(part, recipe) * recipe.batch * (scale.sequence - 1)
        calibrated = recipe.fold * scale.calibration * scale.batch * scale.sequence
        most = part * scale.steps * scale.batch * (scale.sequence - 1)
        assert most - recipe.batch * scale.sequence < trained + calibrated <= most + 1e-6


def test_a_fold_alone_reads_its_own_number_of_tokens_and_nothing_else_depends_on_it():
    rows = {row.label: row for row in rows_of("qwen3_moe", "dictionary", WHOLE) if row.seed == 0}
    other = dataclasses.replace(WHOLE, calibration_alone=1)
    changed = {
        label for label, row in rows.items() if kept_results.digest_of(row, WHOLE) != kept_results.digest_of(row, other)
    }
    assert changed == {label for label in rows if label.startswith("folded-")} != set()
    rows = {row.label: row for row in rows_of("deepseek_v3", "topics", SMOKE)}
    model, batches = torch.nn.Module(), iter(range(100))
    data = SimpleNamespace(train=lambda batch: batches, chosen_by=[])
    with mock.patch("farskip_compile.healing.fold.fold") as fold:
        fold.return_value = SimpleNamespace(tokens=7, reads=[])
        scale = dataclasses.replace(SMOKE, calibration_alone=5)
        runner._folded(model, rows["folded-full"], scale, FarSkipConfig(), data)
    assert fold.call_args.args == (model, [0, 1, 2, 3, 4])


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
    assert 4e5 <= parameters(new_model(model, WHOLE, 0)) < 1e6 < parameters(new_model(model, LARGER, 0)) < 2e6


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


def test_a_worker_ends_with_its_parent(monkeypatch):
    parents = iter([7, 7, 1])
    monkeypatch.setattr(runner.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)
    ended: list[int] = []
    monkeypatch.setattr(runner.os, "_exit", ended.append)
    runner._end_with(7)
    assert (ended, list(parents)) == ([1], [])


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


@pytest.mark.parametrize(("recipe", "warm_up"), [(PAPER, 68), (BEST, 20)], ids=["paper", "best"])
def test_warm_up_is_the_recipes_or_a_tenth_of_the_steps(recipe, warm_up):
    row = next(row for row in rows_of("qwen3_moe", "dictionary", WHOLE) if row.label == f"{recipe.name}-full")
    assert runner.configuration(row, WHOLE, FarSkipConfig(), None).warm_up_steps == warm_up


@pytest.mark.parametrize(("scale", "inner"), [(WHOLE, "inductor"), (SMOKE, "eager")], ids=["whole", "smoke"])
def test_only_teachers_are_compiled(scale, inner):
    teacher, healed = (
        next(row for row in rows_of("qwen3_moe", scale.corpora[0], scale) if row.label == label)
        for label in ("teacher", "best-full")
    )
    config = FarSkipConfig(inner="eager")
    assert runner.options_of(teacher, scale, config, None)["options"] == {"inner": inner}
    assert runner.options_of(healed, scale, config, None)["options"] == {"inner": "eager"}


def test_the_page_is_made_anew_from_the_whole_experiment():
    assert distillation.arguments(["--table", "--larger"]).json == distillation.JSON
    assert distillation.arguments(["--larger"]).json == distillation.LARGER
    assert distillation.arguments(["--larger", "--models", "qwen3_moe"]).json.name == "results.json"
