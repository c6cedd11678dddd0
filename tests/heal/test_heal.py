# SPDX-License-Identifier: Apache-2.0
"""`farskip heal` from end to end: every figure on its page is computed again by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers")
pytest.importorskip("datasets")

from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import farskip_compile
from farskip_compile.cli import app
from farskip_compile.models.transformers_form import TransformersFarSkipForm, tiny_deepseek_v3
from tests.heal.common import JUDGED, LENGTH, judged_sequences, make_checkpoint

pytestmark = pytest.mark.xdist_group("heal")  # one worker, so that `folder` is made once


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        *("heal", str(folder / "checkpoint"), "--data", str(folder / "train.txt"), "--held-out"),
        *(str(folder / "held.txt"), "--sequence-length", str(LENGTH), "--held-out-sequences", str(2 * JUDGED)),
        *("--tokens", "600", "--learning-rate", "2e-3", "--inner", "eager", *more),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and what healing it left."""
    path = tmp_path_factory.mktemp("heal")
    make_checkpoint(path, tiny_deepseek_v3(2))
    done = CliRunner().invoke(app, arguments(path, "--out", str(path / "out"), "--yes", "--json"))
    assert done.exit_code == 0, done.output
    (path / "stdout.json").write_text(done.stdout)
    (path / "stderr.txt").write_text(done.stderr)
    return path


def said(model, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [S, T - 1, V] of the next tokens."""
    with torch.no_grad():
        return model(ids)[:, :-1].log_softmax(-1)


def test_figures_by_hand(folder) -> None:
    report = json.loads((folder / "stdout.json").read_text())
    ids = judged_sequences(folder)
    original = AutoModelForCausalLM.from_pretrained(folder / "checkpoint")
    folded = AutoModelForCausalLM.from_pretrained(folder / "checkpoint")
    parameters = dict(folded.named_parameters())
    files = sorted((folder / "out" / "fold").glob("*.safetensors"))
    assert files
    for file in files:
        for name, value in load_file(file).items():
            parameters[name].data.copy_(value)
    healed = loaded(folder)
    forms = {
        "original": lambda ids: original(ids).logits,
        "rewired": TransformersFarSkipForm(original),
        "folded": TransformersFarSkipForm(folded),
        "healed": TransformersFarSkipForm(healed),
    }
    assert list(report["rows"]) == list(forms)
    targets, p = ids[:, 1:], said(forms["original"], ids)
    of_original = -p.gather(-1, targets[..., None])[..., 0]
    with torch.no_grad():
        assert report["rows"]["original"]["loss"] == pytest.approx(original(ids, labels=ids).loss.item(), rel=1e-5)
    kls = {}
    for name, form in forms.items():
        row, q = report["rows"][name], said(form, ids)
        losses = -q.gather(-1, targets[..., None])[..., 0]
        kls[name] = (p.exp() * (p - q)).sum(-1).mean().item()
        assert row["loss"] == pytest.approx(losses.mean().item(), rel=1e-5), name
        assert row["perplexity"] == pytest.approx(math.exp(losses.mean().item()), rel=1e-4)
        assert row["kl"] == pytest.approx(kls[name], rel=1e-3, abs=1e-6)
        assert row["top1"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).float().mean().item())
        apart = (losses - of_original).mean(1)  # sequences of equally many targets
        assert row["difference"] == pytest.approx(apart.mean().item(), abs=1e-6)
        assert row["error"] == pytest.approx(apart.std().item() / math.sqrt(JUDGED), rel=1e-3, abs=1e-7)
    for name, kl in kls.items():
        assert report["rows"][name]["repaired"] == pytest.approx(1 - kl / kls["rewired"], abs=1e-3)
    assert kls["healed"] < kls["folded"] < kls["rewired"]


def loaded(folder: Path):
    found = AutoModelForCausalLM.from_pretrained(folder / "out" / "model")
    with pytest.raises(farskip_compile.OriginalWiringError):
        found(torch.zeros(1, 4, dtype=torch.long))
    return found


def test_bits_per_byte_by_hand(folder) -> None:
    report = json.loads((folder / "stdout.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "out" / "model")
    targets = judged_sequences(folder)[:, 1:].flatten().tolist()
    # a byte-level token has a character for each of its bytes; the end of text stands for none
    size = sum(len(tokenizer.convert_ids_to_tokens(one)) for one in targets if one != tokenizer.eos_token_id)
    assert report["bytes_per_token"] == pytest.approx(size / len(targets))
    notes = farskip_compile.load_manifest(folder / "out" / "model").healing
    bits = report["rows"]["healed"]["loss"] / math.log(2) * len(targets) / size
    assert notes["held_out"]["healed"]["bits_per_byte"] == pytest.approx(bits)
    page = (folder / "out" / "report.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("| healed")]
    assert f"{bits:.4f}" in line.split()


def test_the_checkpoint_runs_from_its_manifest(folder) -> None:
    model = loaded(folder)
    manifest = farskip_compile.load_manifest(folder / "out" / "model")
    assert manifest.connectivity == "full"
    assert farskip_compile.load_manifest(folder / "out" / "model" / "config.json").healing == manifest.healing
    notes = manifest.healing
    assert (notes["recipe"], notes["steps"], notes["tokens"]) == ("best", 20, 20 * 2 * (LENGTH - 1))
    assert notes["fold"]["kl_after"] < notes["fold"]["kl_before"]
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"manifest": manifest, "inner": "eager"})
    ids = judged_sequences(folder)
    with torch.no_grad():
        assert torch.equal(compiled(ids).logits, TransformersFarSkipForm(model)(ids))


def test_what_is_said_and_written(folder) -> None:
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report == json.loads((folder / "stdout.json").read_text())
    damage = {one["row"]: one["kl"] for one in report["damage"]["rows"]}
    assert list(damage) == report["plan"]["rows"] == ["mlp.0", "moe.1"]
    said = (folder / "stderr.txt").read_text()
    assert "rewired 2 of 4 sub-blocks" in said
    assert "600 in 20 steps" in said
    assert {file.stem for file in (folder / "out" / "steps").iterdir()} == {
        *("explanation", "estimate", "forecast", "damage", "plan", "healing", "judgement")
    }
    estimate = report["estimate"]
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint")
    count = sum(value.numel() for value in model.parameters())
    assert (estimate["parameters"], estimate["steps"], estimate["tokens"]) == (count, 20, 600)
    assert estimate["memory"]["AdamW"] == 8 * count
    assert all(value > 0 for value in estimate["seconds"].values())


def test_a_second_call_computes_nothing(folder, monkeypatch) -> None:
    for name in ("explain", "estimate", "forecast", "damage_of", "choose_rows", "self_distill", "judge"):
        monkeypatch.delattr(f"farskip_compile.healing.heal.main.{name}")
    weights = (folder / "out" / "model" / "model.safetensors").read_bytes()
    again = CliRunner().invoke(app, arguments(folder, "--out", str(folder / "out"), "--json"))  # no question
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == json.loads((folder / "stdout.json").read_text())
    assert (folder / "out" / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--learning-rate", "1e-3"], "recipe: learning_rate was 0.002, and is now 0.001"),
        (["--tokens", "900"], "number of steps: it was 20, and is now 30"),
        (["--layers", "1:1"], "choice of rows"),
        (["--sequence-length", "8"], "text"),
    ],
)
def test_training_is_not_done_again_for_other_arguments(folder, more, what) -> None:
    done = CliRunner().invoke(app, [*arguments(folder, "--out", str(folder / "out"), "--yes"), *more])
    assert done.exit_code == 2, done.output
    assert what in " ".join(done.stderr.replace("│", "").split())


def test_rows_that_were_chosen_by_what_they_hide_are_healed_alone(folder) -> None:
    """Its parallel form is estimated on fake ranks; what is saved runs with those rows and no others."""
    out = folder / "chosen"
    options = ("--hardware", "h100", "--ep", "2", "--free", "60%", "--no-fold", "--yes", "--json")
    done = CliRunner().invoke(app, arguments(folder, "--out", str(out), *options))
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    damage = {one["row"]: one["kl"] for one in report["damage"]["rows"]}
    rows = report["plan"]["rows"]
    assert 0 < len(rows) < len(damage), damage
    assert 0.6 <= report["plan"]["freed"] <= 1.0
    assert report["plan"]["damage"] == pytest.approx(sum(damage[row] for row in rows))
    manifest = farskip_compile.load_manifest(out / "model")
    assert [row.name for row in manifest.table.rows if row.left_out] == rows
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"manifest": manifest, "inner": "eager"})
    ids = judged_sequences(folder)
    original = AutoModelForCausalLM.from_pretrained(folder / "checkpoint")
    p, q = (said(lambda ids, model=model: model(ids).logits, ids) for model in (original, compiled))
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    assert report["rows"]["healed"]["kl"] == pytest.approx(kl, rel=1e-3)
