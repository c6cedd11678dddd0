# SPDX-License-Identifier: Apache-2.0
"""`farskip evaluate`: its numbers against both models by hand, its exit statuses, its table in 80 and 120 columns."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from typer.testing import CliRunner

from farskip_compile.cli import app
from farskip_compile.models.generic_form import GenericFarSkipForm
from farskip_compile.text_utils import UNPRINTABLE
from tests.evaluation.checkpoints import model, save, save_healed, tokenizer

pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager

from farskip_compile.cli.terminal import Terminal
from farskip_compile.healing.evaluation.difference import Comparison, Measured, MetricLine
from farskip_compile.healing.evaluation.table import comparison_table

OF_RUN = "farskip_compile.healing.evaluation.run.TaskManager"
TASKS = Path(__file__).parent / "tasks"
WIDTHS = pytest.mark.parametrize("columns", [80, 120])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(model(1), tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights: rewired, and not healed."""
    return save_healed(model(1), tmp_path_factory.mktemp("healed"))


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder of the tasks; lm-eval's own (13,000 files) are looked through where a test says so."""
    monkeypatch.chdir(TASKS)
    monkeypatch.setattr(OF_RUN, partial(TaskManager, include_defaults=False))


def run(*arguments: Any, columns: int = 80) -> Any:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": str(columns)})
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def documents(name: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (TASKS / name).read_text().splitlines()]


def log_likelihood(form: Any, context: str, text: str) -> float:
    encode = tokenizer().encode
    first, second = encode(context) if context else [0], encode(text)
    with torch.no_grad():
        logits = form(torch.tensor([first + second])).logits[0, len(first) - 1 : -1]
    return float(logits.double().log_softmax(-1)[range(len(second)), second].sum())


def chosen(form: Any, document: dict[str, Any]) -> tuple[bool, bool]:
    """By log-likelihood, and by that for each character."""
    found = [log_likelihood(form, document["question"], answer) for answer in document["answers"]]
    by_length = [value / len(answer) for value, answer in zip(found, document["answers"], strict=True)]
    return tuple(int(numpy.argmax(values)) == document["right"] for values in (found, by_length))


def word(form: Any, document: dict[str, Any]) -> float:
    return log_likelihood(form, document["text"], f" {document['word']}")


def bits(form: Any, texts: list[dict[str, Any]]) -> float:
    size = sum(len(one["text"]) for one in texts)
    return -sum(log_likelihood(form, "", one["text"]) for one in texts) / size / math.log(2)


def test_both_models_by_hand(original: Path, healed: Path) -> None:
    result = run(
        original,
        healed,
        *("--tasks", "tiny_choice,tiny_text,tiny_word", "--include-path", ".", "--batch-size", 4, "--device", "cpu"),
        *("--inner", "eager", "--limit-drop", "tiny_text=0.001", "--max-drop", 1e9, "--json"),
    )
    found = json.loads(result.stdout)
    lines = {(line["task"], line["metric"]): line for line in found["lines"]}
    plain = model(1)
    plain.config.use_cache = False
    forms = plain, GenericFarSkipForm(plain)

    choices = [[chosen(form, one) for one in documents("choice.jsonl")] for form in forms]
    for number, metric in enumerate(("acc", "acc_norm")):
        values = numpy.array([[one[number] for one in both] for both in choices], dtype=float)
        line = lines["tiny_choice", metric]
        assert [line["original"]["value"], line["healed"]["value"]] == pytest.approx(values.mean(1).tolist())
        assert line["error"] == pytest.approx((values[1] - values[0]).std(ddof=1) / math.sqrt(values.shape[1]))
        assert line["paired"]
        assert not line["exceeds"]

    line = lines["tiny_text", "bits_per_byte"]
    texts = documents("text.jsonl")
    expected = [bits(form, texts) for form in forms]
    assert [line["original"]["value"], line["healed"]["value"]] == pytest.approx(expected, rel=1e-5)
    assert line["drop"] == pytest.approx(expected[1] / expected[0] - 1, rel=1e-3)
    kept = [texts[:number] + texts[number + 1 :] for number in range(len(texts))]
    changes = [bits(forms[1], some) - bits(forms[0], some) for some in kept]
    assert line["error"] == pytest.approx(numpy.std(changes) * math.sqrt(len(texts) - 1), rel=1e-3)

    line = lines["tiny_word", "perplexity"]
    words = [math.exp(-numpy.mean([word(form, one) for one in documents("word.jsonl")])) for form in forms]
    assert [line["original"]["value"], line["healed"]["value"]] == pytest.approx(words, rel=1e-4)

    assert expected[1] > 1.001 * expected[0]
    assert [key for key, line in lines.items() if line["exceeds"]] == [
        ("tiny_text", "byte_perplexity"),
        ("tiny_text", "bits_per_byte"),
    ]
    assert (result.exit_code, found["holds"], found["original"]) == (1, False, None)
    assert found["healed"]["left_out"] == {"moe.0": ["a0"], "attention.1": ["r0"], "moe.1": ["a1"]}
    assert found["healed"]["graphs"] == 1


# What it says, and how it ends


def line(task: str, metric: str, original: float, healed: float, **more: Any) -> MetricLine:
    given = {"error": 0.004, "paired": True, "samples": 100, "higher_is_better": True, "limit": 0.01, **more}
    return MetricLine(task, metric, Measured(original, 0.05), Measured(healed, 0.05), **given)


EVIDENCE = {"connectivity": "full", "left_out": {"moe.0": ["a0"]}, "graphs": 3, "batches": {"log-likelihoods": 12}}
FINE = Comparison(
    (
        line("hellaswag", "acc", 0.5123, 0.5101),
        line("hellaswag", "acc_norm", 0.6123, 0.5901, error=0.02, limit=0.1),
        line("wikitext", "word_perplexity", 12.345, 12.4, higher_is_better=False),
        line("wikitext", "bits_per_byte", 0.7, 0.6, higher_is_better=False, error=0.2, limit=0.02),
        line("mmlu", "acc", 0.4, 0.5, paired=False, samples=None),
        line("a_task_with_a_name_that_is_rather_long", "exact_match (flexible-extract)", 0.0, 0.0, error=None),
        line("other", "score", 123456.0, 1.0, higher_is_better=None),
    ),
    None,
    EVIDENCE,
)
WORSE = Comparison((*FINE.lines, line("gsm8k", "exact_match", 0.5, 0.4)), None, EVIDENCE)
UNLIMITED = Comparison(tuple(replace(one, limit=None) for one in FINE.lines), EVIDENCE, EVIDENCE)


def printed(found: Comparison, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("farskip_compile.healing.evaluation.run.evaluate", lambda *_, **__: found)
    result = run("one", "other", "--tasks", "x", columns=columns)
    assert result.exit_code == (0 if found.holds else 1)
    assert not UNPRINTABLE.search(result.output)
    assert max(map(len, result.stdout.splitlines())) <= columns
    return result.stdout


@WIDTHS
@pytest.mark.parametrize("found", [FINE, WORSE, UNLIMITED])
def test_the_table_fits(found: Comparison, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(found, columns, monkeypatch)
    assert "hellaswag" in text
    assert all("…" not in row for row in text.splitlines())
    cells = [cell for row in text.splitlines() for cell in row.split("  ")]
    assert "0.5123 ±0.0500" in map(str.strip, cells)
    assert "-0.0022 ±0.0040" in map(str.strip, cells)


def test_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(WORSE, 120, monkeypatch)
    rows = {tuple(row.split()[:1]): row.split() for row in reversed(text.splitlines()) if row.startswith("  ")}
    assert rows["acc",][-1] == "ok"
    assert rows["acc_norm",][-2:] == ["0.1", "ok"]
    assert rows["word_perplexity",][-2:] == ["0.01x", "ok"]
    assert rows["bits_per_byte",][-2:] == ["0.02x", "ok?"]
    assert rows["score",][-1] == "-"
    assert [row.split()[-1] for row in text.splitlines() if row.strip().startswith("exact_match")] == ["ok?", "FAIL"]
    assert sum("±0.0040*" in row for row in text.splitlines()) == 1
    for note in ("* not paired", "x: less is better", "-: the task does not say", "? the standard error is larger"):
        assert note in text
    assert "original: as it is written" in text
    assert "healed: rewired, 1 sub-block in each of 3 graphs; batches: 12 of log-likelihoods" in text
    unlimited = printed(UNLIMITED, 120, monkeypatch)
    assert "FAIL" not in unlimited
    assert "limit" not in unlimited


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tasks", "tiny_choise"], "lm-eval has no task 'tiny_choise'"),
        (["--tasks", "tiny_choise"], "did you mean tiny_choice"),
        (["--tasks", " , "], "names no task"),
        (["--tasks", "tiny_choice", "--limit-drop", "tiny_choice"], "is not TASK=DROP"),
        (["--tasks", "tiny_choice", "--limit-drop", "tiny_choice=-1"], "is not TASK=DROP"),
        (["--tasks", "tiny_choice", "--limit-drop", "tiny_choice=nan"], "is not TASK=DROP"),
        (["--tasks", "tiny_choice", "--limit-drop", "tiny_choice:f1=0.1"], "will not be measured"),
        (["--tasks", "tiny_choice", "--limit-drop", "arc=0.1"], "will not be measured"),
        (["--tasks", "tiny_choice", "--batch-size", "many"], "neither a number nor auto"),
        (["--tasks", "tiny_choice"], "has no manifest"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str, original: Path) -> None:
    """The last one is right but for the checkpoints: swapped, or never healed."""
    result = run(original, original, *arguments, "--include-path", ".", columns=200)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_tasks_of_lm_eval_are_known(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OF_RUN, TaskManager)
    result = run(original, original, "--tasks", "tiny_choice,hellaswagg", "--include-path", ".", columns=200)
    assert result.exit_code == 2
    assert "did you mean hellaswag" in " ".join(result.stderr.split())


def test_a_task_that_can_not_be_loaded(original: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text((TASKS / "tiny_choice.yaml").read_text().replace("tiny_choice", "broken"))
    text = (tmp_path / "broken.yaml").read_text()
    (tmp_path / "broken.yaml").write_text(text.replace("choice.jsonl", "nowhere.jsonl"))
    result = run(original, original, "--tasks", "broken", "--include-path", tmp_path, columns=200)
    assert result.exit_code == 2
    assert "lm-eval can't load the tasks" in " ".join(result.stderr.split())


def test_a_table_of_names_that_others_chose() -> None:
    evil = replace(FINE.lines[0], task="[red]\x1b[2J", metric="[/x]")
    console = Terminal()
    with console.capture() as capture:
        console.print(comparison_table(Comparison((evil,))))
    assert not UNPRINTABLE.search(capture.get())
    assert "[/x]" in capture.get()
