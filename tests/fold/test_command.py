# SPDX-License-Identifier: Apache-2.0
"""`farskip heal --recipe fold`: from a checkpoint and text to a repaired one, against the FarSkip form by hand."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers")
pytest.importorskip("datasets")

from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from farskip_compile import load_manifest, prepare
from farskip_compile.cli import app
from farskip_compile.healing.fold.record import Folded, FoldedRead, LeftAlone
from farskip_compile.healing.fold.text import fold_table
from farskip_compile.healing.texts.loaders import text_batches
from farskip_compile.models.transformers_form import TransformersFarSkipForm, tiny_deepseek_v3
from tests.prose import PROSE as TEXT

SIZES = ["--sequence-length", "16", "--batch-size", "4", "--tokens", "1024", "--held-out-sequences", "16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Text, its tokenizer, and a small DeepSeek-V3 that says something."""
    path = tmp_path_factory.mktemp("fold")
    (path / "train.txt").write_text(TEXT[:9000])
    (path / "held.txt").write_text(TEXT[9000:13000])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    model = tiny_deepseek_v3(3)
    trainer = trainers.BpeTrainer(vocab_size=model.config.vocab_size, special_tokens=["<end>"])
    tokenizer.train([str(path / "train.txt")], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(path / "checkpoint")
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(3.0 if value.dim() > 1 else 1.0)
    model.save_pretrained(path / "checkpoint")
    return path


def test_a_checkpoint_is_folded(folder):
    texts = ["--data", str(folder / "train.txt"), "--held-out", str(folder / "held.txt")]
    command = ["heal", str(folder / "checkpoint"), "--recipe", "fold", *texts, *SIZES, "--out", str(folder / "out")]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    made = folder / "out" / "model"
    manifest = load_manifest(made)
    assert manifest.connectivity == "full"
    assert manifest.healing["fold"] == {key: told[key] for key in ("kl_before", "kl_after", "tokens")}
    assert told["tokens"] == 16 * 4 * 15
    original, folded = (AutoModelForCausalLM.from_pretrained(path) for path in (folder / "checkpoint", made))
    shapes = {name: value.shape for name, value in original.state_dict().items()}
    assert {name: value.shape for name, value in folded.state_dict().items()} == shapes
    tokenizer = PreTrainedTokenizerFast.from_pretrained(made)
    held = text_batches([folder / "held.txt"], tokenizer, sequence_length=16, batch_size=4, shuffle=False, limit=16)
    kl = {}
    for name, model in (("kl_before", original), ("kl_after", folded)):
        sums = 0.0
        with torch.no_grad():
            for ids in held:
                p = original(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
                q = TransformersFarSkipForm(model)(ids)[:, :-1].log_softmax(-1)
                sums += (p.exp() * (p - q)).sum().item()
        kl[name] = sums / (16 * 15)
    assert told["kl_before"] == pytest.approx(kl["kl_before"], rel=1e-4)
    assert told["kl_after"] == pytest.approx(kl["kl_after"], rel=1e-4)
    assert kl["kl_after"] < kl["kl_before"]
    prepare(folded)  # and it is compiled from its manifest
    compiled = torch.compile(folded, backend="farskip", options={"manifest": manifest, "inner": "eager"})
    with torch.no_grad():
        ids = next(iter(held))
        assert torch.equal(compiled(input_ids=ids, use_cache=False).logits, TransformersFarSkipForm(folded)(ids))
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert "of the damage repaired" in again.stdout
    other = CliRunner().invoke(app, [*command, "--inputs-only"])
    assert other.exit_code == 2
    assert "holds the fold of another request" in " ".join(other.output.replace("│", " ").split())


def test_the_table_fits(capsys):
    parameters = tuple(f"model.layers.11.mlp.experts.{number}.gate_proj.weight" for number in range(64))
    found = Folded(
        reads=(
            FoldedRead("attention.11", ("model.layers.11.q.weight",), 0.51, 0.01, 0.4, 0.5, accepted=True),
            FoldedRead("moe.11", parameters, -0.01, 1.0, 0.41, 0.4, accepted=False, outputs=True),
        ),
        left_alone=(LeftAlone("moe.11", "model.embed.weight", "it is used elsewhere, too: embedding"),),
        kl_before=0.5,
        kl_after=0.4,
        tokens=65_408,
    )
    for width in (80, 120):
        console = Console(width=width, force_terminal=False)
        console.print(fold_table(found))
        lines = capsys.readouterr().out.splitlines()
        assert all(len(line) <= width for line in lines)
        assert [line.split() for line in lines[1:3]] == [
            ["attention.11", "what", "it", "reads", "1", "51%", "0.4000"],
            ["moe.11", "what", "it", "adds", "64", "0%", "0.4100", "not", "taken"],
        ]
        assert "20% of the damage repaired with 65,408 tokens, no step of training" in lines
