# SPDX-License-Identifier: Apache-2.0
"""What ends `farskip heal` before anything is written; and its options."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers")
pytest.importorskip("datasets")

from farskip_compile import ConfigError
from farskip_compile.cli import app
from farskip_compile.cli import heal as command
from farskip_compile.healing.heal import choice, forecast, main
from farskip_compile.healing.heal.recipes import config_for, steps_for
from farskip_compile.healing.heal.settings import HealSettings
from farskip_compile.healing.plan.choose import Exposure, Front, Point
from farskip_compile.manifest.guarded import guarded
from tests.heal.common import LENGTH, TEXT, make_checkpoint, tiny_qwen3_moe

pytestmark = pytest.mark.xdist_group("heal-refusals")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("refusals")
    make_checkpoint(path, tiny_qwen3_moe())
    (path / "seen.txt").write_text("Most of it is new. " + TEXT[1000:2500])
    return path


def run(folder, *more: str, held_out: str = "held.txt", checkpoint: str = "checkpoint"):
    given = ["--sequence-length", str(LENGTH), "--tokens", "600", "--inner", "eager", "--out", str(folder / "out")]
    texts = ["--data", str(folder / "train.txt"), "--held-out", str(folder / held_out)]
    found = CliRunner().invoke(app, ["heal", str(folder / checkpoint), *texts, *given, *more])
    assert not (folder / "out").exists()
    return found, " ".join(found.output.replace("│", "").split())


def test_nothing_is_written_without_a_yes(folder, monkeypatch) -> None:
    for name in ("forecast", "damage_of", "self_distill"):
        monkeypatch.delattr(main, name)
    done, said = run(folder)
    assert (done.exit_code, "nobody to answer" in said) == (2, True)
    monkeypatch.setattr(command, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True), argv=[""]))
    monkeypatch.setattr(command.typer, "confirm", lambda *given, **more: False)
    done, said = run(folder)
    assert (done.exit_code, said.endswith("Nothing was written.")) == (1, True)
    assert "600 in 20 steps" in said
    assert "rewired 3 of 4 sub-blocks" in said


def test_held_out_text_in_the_training_text(folder) -> None:
    done, said = run(folder, "--yes", held_out="seen.txt")
    assert done.exit_code == 2
    assert "share 50 tokens or a document" in said
    assert "--allow-overlap" in said


@pytest.mark.parametrize(
    ("more", "status", "what"),
    [
        (["--free", "80%"], 2, "--free needs to know what communication takes"),
        (["--free", "80", "--hardware", "h100"], 2, "is not a share"),
        (["--budget", "0.1", "--free", "80%", "--hardware", "h100"], 2, "both say which rows"),
        (["--held-out-fraction", "0.1"], 2, "both say what is held out"),
        (["--recipe", "fast"], 2, "is not one of 'best', 'default', 'paper'"),
        (["--recipe", "paper", "--fold"], 2, "is not the paper's recipe"),
        (["--device", "nowhere"], 2, "there is no device nowhere"),
        (["--sequence-length", "1500"], 2, "held-out text has"),
        (["--layers", "7:9"], 2, "layers (7, 9) lies outside the model"),
        (["--data", "nothing-*.txt"], 2, "matches no file"),
    ],
)
def test_wrong_arguments(folder, more, status, what) -> None:
    done, said = run(folder, "--yes", *more)
    assert done.exit_code == status, said
    assert what in said


def test_a_model_without_experts_and_one_that_is_healed(folder) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=128, **sizes)).save_pretrained(folder / "dense")
    for file in (folder / "checkpoint").glob("token*"):
        (folder / "dense" / file.name).write_bytes(file.read_bytes())
    done, said = run(folder, "--yes", checkpoint="dense")
    assert done.exit_code == 1, said
    assert "DenseModelError" in said
    config = folder / "dense" / "config.json"
    config.write_text(guarded(config.read_text()))
    done, said = run(folder, "--yes", checkpoint="dense")
    assert (done.exit_code, "is a healed checkpoint already" in said) == (2, True)


def test_files_as_a_shell_gives_them(folder, monkeypatch) -> None:
    given = {}

    def heal(settings, talk):
        given["settings"] = settings
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "heal", heal)
    names = [str(folder / name) for name in ("train.txt", "seen.txt", "held.txt")]
    called = ["heal", "checkpoint", "--data", *names[:2], "--held-out", names[2], "--out", "x"]
    done = CliRunner().invoke(app, called)
    assert done.exit_code == 130
    assert "The same command continues" in done.output
    settings = given["settings"]
    assert [str(one) for one in (*settings.data, *settings.held_out)] == names
    monkeypatch.chdir(folder)
    CliRunner().invoke(
        app, ["heal", "checkpoint", "--data", "*e*n.txt", "--out", "x", "--free", ".5", "--hardware", "h100"]
    )
    assert [str(one) for one in given["settings"].data] == ["seen.txt"]
    assert (given["settings"].free, given["settings"].fraction) == (0.5, 0.02)


def settings(folder, **more) -> HealSettings:
    return HealSettings(
        **{"checkpoint": folder / "checkpoint", "data": (folder / "train.txt",), "out": folder / "out"} | more
    )


def test_recipes(folder) -> None:
    def made(**more):
        return config_for(settings(folder, **more), 1000, ("full", None), 2.0)

    assert (made().fold, made().stream_weight, made().learning_rate, made().recipe) == (True, 3.0, "auto", "default")
    plain = made(recipe="default")
    assert (plain.fold, plain.stream_weight, plain.learning_rate) == (False, 0.0, "auto")
    paper = made(recipe="paper", learning_rate=4e-5)
    assert (paper.recipe, paper.learning_rate, paper.fold) == ("paper", 4e-5, False)
    assert made(fold=False, stream_weight=0.0).fold is False
    assert (paper.warm_up_steps, paper.evaluate_every, paper.save_every) == (100, 50, 50)
    assert config_for(settings(folder), 1000, ("full", None), 60.0).save_every == 10  # ten minutes
    # all of the text once: 100 sequences in batches of 2; or so many tokens, 15 in a sequence
    assert steps_for(settings(folder), 1500, 100) == 50
    assert steps_for(settings(folder, tokens=3000, accumulate=2), 1500, 100) == 50


def test_rows_are_chosen_by_what_they_hide(folder, monkeypatch) -> None:
    damage = {
        "original": {"loss": 1.0, "kl": 0.0, "top1": 1.0},
        "together": {"loss": 1.5, "kl": 0.5, "top1": 0.5},
        "rows": [
            {"row": name, "layer": layer, "left_out": ["a0"], "loss": 1.0, "kl": kl, "top1": 0.9}
            for layer, (name, kl) in enumerate([("moe.0", 0.3), ("moe.1", 0.1)])
        ],
    }
    points = [
        Point(rows, kl, Exposure(1.0, exposed, 5.0))
        for rows, kl, exposed in (((), 0.0, 1.0), (("moe.1",), 0.1, 0.4), (("moe.0", "moe.1"), 0.4, 0.2))
    ]
    monkeypatch.setattr(choice, "_front", lambda damage, settings: Front(tuple(points), points[-1]))
    found = choice.choose_rows(damage, settings(folder, free=0.7, hardware="h100"))
    assert (found["rows"], found["of"]) == (["moe.1"], 2)
    assert found["freed"] == pytest.approx(0.6 / 0.8)
    chosen = settings(folder, free=0.7, hardware="h100")
    assert choice.chosen_connectivity(found, chosen) == ({"moe.1": ("a0",)}, None)
    assert choice.choose_rows(damage, settings(folder, free=0.9, hardware="h100"))["rows"] == ["moe.0", "moe.1"]
    assert choice.choose_rows(damage, settings(folder, budget=0.2, hardware="h100"))["rows"] == ["moe.1"]
    with pytest.raises(ConfigError, match=r"the least is 0\.1"):
        choice.choose_rows(damage, settings(folder, budget=0.05, hardware="h100"))


def test_a_model_that_cannot_be_simulated_is_healed_all_the_same(folder, monkeypatch) -> None:
    def predict(scenario):
        raise ConfigError("this one can't be cut")

    monkeypatch.setattr(forecast, "predict", predict)
    found = forecast.forecast(settings(folder, hardware="h100", ep=4))
    assert forecast.in_words(found) == "No forecast: ConfigError: this one can't be cut"
    with pytest.raises(ConfigError, match="neither divides"):
        forecast.forecast(settings(folder, hardware="h100", ep=8, tp=3))


def test_halves_of_held_out_text(folder) -> None:
    from farskip_compile.healing.distill.source import tokenizer_of
    from farskip_compile.healing.heal.material import halves
    from farskip_compile.healing.texts.loaders import text_batches

    tokenizer = tokenizer_of("checkpoint", folder)
    common = {"sequence_length": LENGTH, "shuffle": False, "count_bytes": True}
    text = text_batches([folder / "held.txt"], tokenizer, batch_size=1, **common)
    every = torch.cat(list(text))
    first, second = (torch.cat(half.batches) for half in halves(text, 10_000, 2))
    middle = len(every) // 2
    assert (len(first), len(second)) == (middle // 2 * 2, (len(every) - middle) // 2 * 2)
    for half, part in ((first, every[:middle]), (second, every[middle:])):
        rest = iter(part.tolist())
        assert all(sequence in rest for sequence in half.tolist())  # in order, and none twice
    one, _ = halves(text, 6, 2)
    assert (one.sequences, one.targets, len(one.batches)) == (2, 2 * (LENGTH - 1), 1)
    assert math.isclose(one.bytes_per_token * one.targets, one.bytes)
    with pytest.raises(ConfigError, match="both halves together need"):
        halves(text, 10_000, len(every))
