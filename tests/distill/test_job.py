# SPDX-License-Identifier: Apache-2.0
"""`farskip heal CONFIG.toml`: a model of transformers, text files, a tokenizer; and what a file can get wrong."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers")
pytest.importorskip("datasets")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import farskip_compile
from farskip_compile import ConfigError
from farskip_compile.cli import app
from farskip_compile.healing.distill import text_batches
from farskip_compile.healing.distill.job import read_job
from farskip_compile.models.transformers_form import TransformersFarSkipForm, tiny_deepseek_v3
from tests.distill.text_common import PLAIN, chat_line, write_lines
from tests.prose import PROSE as TEXT
from tests.test_json_files import not_a_file

pytestmark = pytest.mark.xdist_group("jobs")  # one worker, so that `folder` is made once

JOB = """
model = "checkpoint"
[data]
train = ["train-*.txt"]
held_out = "held.txt"
sequence_length = 16
batch_size = 4
held_out_sequences = 8
[distill]
steps = 30
learning_rate = 3e-3
evaluate_every = 15
output = "healed"
tensorboard = true
options = { inner = "eager" }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Text, a tokenizer that was trained on it, and a small DeepSeek-V3 that says something."""
    path = tmp_path_factory.mktemp("job")
    (path / "train-1.txt").write_text(TEXT[:3000])
    (path / "train-2.txt").write_text(TEXT[3000:-1500])
    (path / "held.txt").write_text(TEXT[-1500:])
    (path / "seen.txt").write_text("Most of it is new. " + TEXT[1000:1500])
    (path / "job.toml").write_text(JOB)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    model = tiny_deepseek_v3(2)
    trainer = trainers.BpeTrainer(vocab_size=model.config.vocab_size, special_tokens=["<end>"])
    tokenizer.train([str(path / "train-1.txt")], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(path / "checkpoint")
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(4.0 if value.dim() > 1 else 1.0)
    model.save_pretrained(path / "checkpoint")
    return path


class Board:
    """Stands for tensorboard's writer, which is not installed with the tests."""

    told: list

    def __init__(self, folder, purge_step):
        type(self).told = []
        self.about = (folder, purge_step)

    def add_scalar(self, name, value, step):
        self.told.append((name, value, step))

    def close(self):
        self.told.append("closed")


def test_a_checkpoint_is_healed(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Board))
    done = CliRunner().invoke(app, ["heal", str(folder / "job.toml"), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout[done.stdout.index("{") :])
    checkpoint = folder / "healed" / "model"
    assert told["checkpoint"] == str(checkpoint)
    assert told["steps"] == 30
    assert (told["overlap"]["shared"], told["overlap"]["sequences"]) == (0, 8)
    assert 1 < told["bytes_per_token"] < 8
    original = AutoModelForCausalLM.from_pretrained(folder / "checkpoint")
    healed = AutoModelForCausalLM.from_pretrained(checkpoint)  # with its tokenizer and its manifest
    with pytest.raises(farskip_compile.OriginalWiringError):
        healed(torch.zeros(1, 4, dtype=torch.long))
    held_out = torch.cat(list(read_job(folder / "job.toml").held_out))
    assert held_out.shape == (8, 16)
    with torch.no_grad():
        p = original(held_out).logits[:, :-1].log_softmax(-1)
        for model, key in ((original, "before"), (healed, "after")):
            q = TransformersFarSkipForm(model)(held_out)[:, :-1].log_softmax(-1)
            kl = (p.exp() * (p - q)).sum(-1).mean().item()
            assert told[key]["held_out_kl"] == pytest.approx(kl, rel=1e-4)
    assert told["after"]["held_out_kl"] < 0.9 * told["before"]["held_out_kl"]
    manifest = farskip_compile.load_manifest(checkpoint)
    assert farskip_compile.load_manifest(checkpoint / "config.json") == manifest
    function = torch.compile(
        healed, backend="farskip", fullgraph=True, options={"manifest": manifest, "inner": "eager"}
    )
    with torch.no_grad():
        assert torch.equal(function(held_out).logits, TransformersFarSkipForm(healed)(held_out))
    assert ("held_out_kl", told["before"]["held_out_kl"], 0) in Board.told
    assert [one for one in Board.told if one[0] == "learning_rate"][-1][2] == 30
    assert Board.told[-1] == "closed"


def test_text_is_cut_into_sequences_and_shuffled(folder):
    tokenizer = read_job(folder / "job.toml").tokenizer
    files = sorted(folder.glob("train-*.txt"))
    whole = [token for file in files for token in [*tokenizer(file.read_text())["input_ids"], tokenizer.eos_token_id]]
    inputs = {"sequence_length": 16, "batch_size": 4}
    in_order = torch.cat(list(text_batches(files, tokenizer, shuffle=False, **inputs)))
    assert in_order.flatten().tolist() == whole[: in_order.numel()]
    assert len(whole) - in_order.numel() < 16 * 4
    loader = text_batches(files, tokenizer, **inputs)
    first, second = (torch.cat(list(loader)) for _ in range(2))
    assert not torch.equal(first, second)
    sequences = {tuple(row) for row in torch.tensor(whole[: len(whole) // 16 * 16]).view(-1, 16).tolist()}
    assert {tuple(row) for row in first.tolist()} <= sequences
    with pytest.raises(ConfigError, match="less than one batch"):
        text_batches(files, tokenizer, sequence_length=100_000, batch_size=4)
    with pytest.raises(ConfigError, match="there is no file"):
        text_batches([folder / "nothing.txt"], tokenizer, **inputs)


def test_held_out_text_that_is_trained_on_is_taken_if_allowed(folder):
    job = folder / "allowed.toml"
    for allowed in ("allow_overlap = true", "overlap_limit = 0.999", "overlap_tokens = 2000"):
        text = JOB.replace("[data]", f"[data]\n{allowed}").replace("held_out_sequences = 8", "held_out_sequences = 60")
        job.write_text(text.replace('"held.txt"', '["seen.txt", "held.txt"]'))
        overlap = read_job(job).overlap
        assert (overlap is None) == (allowed == "allow_overlap = true")
        assert overlap is None or (overlap.shared == 0) == (allowed == "overlap_tokens = 2000")


def test_conversations_and_a_split_by_document(folder):
    """A model learns from what the assistant says, in sequences of both sides of the split."""
    questions = TEXT[:-1500].split(". ")
    lines = [chat_line(f"{at}?", text, id=at) for at, text in enumerate(questions) if text.strip()]
    write_lines(folder / "chat.jsonl", *lines)
    (folder / "chat.jinja").write_text(PLAIN)
    job = folder / "chat.toml"
    text = JOB.replace("train-*.txt", "chat.jsonl").replace('held_out = "held.txt"', "held_out_fraction = 0.2")
    text = text.replace("[data]", '[data]\nchat_template = "chat.jinja"').replace("steps = 30", "steps = 2")
    job.write_text(text.replace('"healed"', '"healed_chat"').replace("tensorboard = true", ""))
    data, held_out = read_job(job).data, read_job(job).held_out
    assert data.counts.documents + held_out.counts.documents == len(lines)
    assert 0 < held_out.counts.documents < 0.5 * len(lines)
    assert all((batch["labels"] == -100).any() for batch in held_out)
    done = CliRunner().invoke(app, ["heal", str(job), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout[done.stdout.index("{") :])
    assert told["bytes_per_token"] == held_out.bytes_per_token
    assert told["training_text"]["dropped"] == data.counts.dropped
    assert AutoTokenizer.from_pretrained(folder / "healed_chat" / "model").chat_template is None
    original = AutoModelForCausalLM.from_pretrained(folder / "checkpoint")
    labels, ids = (torch.cat([batch[name] for batch in held_out]) for name in ("labels", "input_ids"))
    with torch.no_grad():
        said = TransformersFarSkipForm(original)(ids)[:, :-1]
    loss = torch.nn.functional.cross_entropy(said.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    assert told["before"]["held_out_loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_a_manifest_says_connectivity_and_layers(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint")
    ids = torch.zeros(1, 4, dtype=torch.long)
    for name, wish in (("a", {"connectivity": "mlp", "layers": (1, 1)}), ("b", {"connectivity": {"moe.1": ["a1"]}})):
        manifest = farskip_compile.describe(model, ids, **wish)
        farskip_compile.save_manifest(manifest, folder / f"{name}.json")
        (folder / f"{name}.toml").write_text(JOB.replace("steps = 30", f'manifest = "{name}.json"'))
        config = read_job(folder / f"{name}.toml").config
        assert (config.connectivity, config.layers) == (manifest.connectivity, manifest.layers)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("model =", "modell =", "did you mean 'model'?"),
        ('"checkpoint"', '"chekpoint"', "unknown model"),
        ("train-*.txt", "none-*.txt", "data.train matches no file"),
        ("batch_size = 4", "batch_size = 0", "data.batch_size=0 is not a count"),
        ("batch_size = 4", "", "the field data.batch_size is missing"),
        ("sequence_length", "sequence_lenght", "did you mean 'data.sequence_length'?"),
        ("steps = 30", "stepps = 30", "did you mean 'steps'"),
        ('output = "healed"', "", "TensorBoard needs a folder"),
        ('output = "healed"\ntensorboard = true', "", "has no distill.output"),
        ("[data]", "[data", "can't read"),
        ("steps = 30", 'manifest = "plan.json"', "can't read"),
        ("steps = 30", 'manifest = "plan.json"\nconnectivity = "mlp"', "distill.manifest and distill.connectivity"),
        ("steps = 30", "connectivity = 'half'", "connectivity='half'"),
        ("[data]", "dtype = 'int64'\n[data]", "dtype='int64' is not a floating-point type"),
        ('held_out = "held.txt"', "", "the field data.held_out is missing"),
        ("[data]", "[data]\nheld_out_fraction = 0.1", "data.held_out and data.held_out_fraction"),
        ('held_out = "held.txt"', "held_out_fraction = 3.0", "held_out_fraction=3.0 is not a fraction"),
        ("[data]", "[data]\noverlap_limit = 1.0", "data.overlap_limit=1.0 is not a part"),
        ("[data]", "[data]\noverlap_tokens = 1", "data.overlap_tokens=1 is not a count"),
        ("[data]", "[data]\nformat = 'csv'", "data.format must be 'text', 'jsonl' or 'chat'"),
        ("[data]", "[data]\nloss_on = 'assistant'", "the data is text"),
        ("[data]", "[data]\nformat = 'chat'", "the tokenizer has no chat template"),
        ("[data]", "[data]\nchat_template = 'none.jinja'", "can't read data.chat_template"),
        ('"held.txt"', '"train-2.txt"', "1 of 1 documents are in both"),
        ('"held.txt"', '"seen.txt"', "the limit is 1.0%, and no document. In both, from"),
    ],
)
def test_what_a_file_can_get_wrong(folder, old, new, words):
    job = folder / "wrong.toml"
    assert old in JOB
    job.write_text(JOB.replace(old, new))
    done = CliRunner().invoke(app, ["heal", str(job)])
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "too large", "nested", "nothing"])
def test_what_is_no_file_of_a_job(tmp_path, kind):
    not_a_file(tmp_path / "job.toml", kind)
    if kind == "nested":
        (tmp_path / "job.toml").write_text("a = " + "[" * 10**5)
    with pytest.raises(ConfigError, match="can't read"):
        read_job(tmp_path / "job.toml")
