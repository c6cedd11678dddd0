# SPDX-License-Identifier: Apache-2.0
"""lm-eval's model `farskip`: log-likelihoods and texts of the FarSkip form by hand, rewired or not at all."""

from __future__ import annotations

import importlib
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import farskip_compile
from farskip_compile.errors import ConfigError, ManifestError, OriginalWiringError
from farskip_compile.models.generic_form import GenericFarSkipForm
from farskip_compile.passes.residual.table import NOTHING
from farskip_compile.records.compile import CompileReport, Outcome
from tests.evaluation.checkpoints import model, save, save_healed, tokenizer

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from farskip_compile.healing.evaluation import FarSkipLM

PAIRS = [("The stack", " of rows"), ("a", "b"), ("term", " t"), ("graph", " reads the sum of them all"), ("x", " y")]
TEXTS = ["a row of terms", "x", "one, two, three, four and five"]
PROMPTS = ["The sum", "rows and terms", "x", "all of them read it", "no"]
STEPS = 6
LEFT_OUT = {"moe.0": ("a0",), "attention.1": ("r0",), "moe.1": ("a1",)}


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_healed(model(1), tmp_path_factory.mktemp("healed"))


def requests(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]


def started(pretrained: Any, **options: Any) -> FarSkipLM:
    return FarSkipLM(pretrained, inner="eager", **{"batch_size": 2, "device": "cpu", **options})


def log_likelihood(form: Any, context: list[int], text: list[int]) -> tuple[float, bool]:
    """One sequence alone, not padded."""
    with torch.no_grad():
        logits = form(torch.tensor([context + text])).logits[0, len(context) - 1 : -1]
    found = logits.log_softmax(-1)[range(len(text)), text].sum()
    return float(found), logits.argmax(-1).tolist() == text


def greedy(form: Any, prompt: list[int]) -> list[int]:
    """Without a cache."""
    tokens = torch.tensor([prompt])
    for _ in range(STEPS):
        with torch.no_grad():
            tokens = torch.cat([tokens, form(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return tokens[0, len(prompt) :].tolist()


def test_equals_the_form_by_hand(healed: Path) -> None:
    lm = started(str(healed))
    pairs = lm.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    rolling = lm.loglikelihood_rolling(requests("loglikelihood_rolling", *[(text,) for text in TEXTS]))
    options = {"until": ["\n\n\n\n"], "max_gen_toks": STEPS}
    texts = lm.generate_until(requests("generate_until", *[(prompt, options) for prompt in PROMPTS]))

    plain = model(1)
    plain.config.use_cache = False
    form, encode = GenericFarSkipForm(plain), tokenizer().encode
    expected = [log_likelihood(form, encode(context), encode(text)) for context, text in PAIRS]
    assert [value for value, _ in pairs] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert [is_greedy for _, is_greedy in pairs] == [is_greedy for _, is_greedy in expected]
    assert rolling == pytest.approx([log_likelihood(form, [0], encode(text))[0] for text in TEXTS], rel=1e-5)
    assert texts == [tokenizer().decode(greedy(form, encode(prompt))) for prompt in PROMPTS]

    original = [log_likelihood(plain, encode(context), encode(text)) for context, text in PAIRS]
    assert all(abs(left[0] - right[0]) > 1e-2 for left, right in zip(expected, original, strict=True))
    assert texts != [tokenizer().decode(greedy(plain, encode(prompt))) for prompt in PROMPTS]

    # log-likelihoods, prefill, decode steps: of batches of one and of two, of prompts with padding and without
    assert [report.left_out for report in farskip_compile.reports().compiles] == [LEFT_OUT] * 3
    assert lm.evidence.to_json()["left_out"] == {row: list(terms) for row, terms in LEFT_OUT.items()}
    assert lm.evidence.calls == {"log-likelihoods": 5, "generation": 3}


def test_a_model_in_memory(healed: Path) -> None:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(healed)
    lm = started(loaded, tokenizer=tokenizer())
    ((value, _),) = lm.loglikelihood(requests("loglikelihood", PAIRS[0]), disable_tqdm=True)
    encoded = [tokenizer().encode(text) for text in PAIRS[0]]
    plain = model(1)
    plain.config.use_cache = False
    assert value == pytest.approx(log_likelihood(GenericFarSkipForm(plain), *encoded)[0], rel=1e-5)


# What does not run rewired is an error


def logits(lm: FarSkipLM) -> Any:
    return lm._model_call(torch.tensor([[1, 2, 3]]))


def generated(lm: FarSkipLM) -> Any:
    ids = torch.tensor([[1, 2, 3]])
    return lm._model_generate(ids, 5, ["<end>"], attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize("run", [logits, generated])
@pytest.mark.parametrize("guarded", [True, False])
def test_a_run_that_is_not_compiled(run: Any, guarded: bool, healed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(healed, tmp_path / "copy")
    farskip_compile.save_manifest(farskip_compile.load_manifest(folder), folder, guard=guarded)
    assert ("farskip_mixtral" in (folder / "config.json").read_text()) == guarded
    lm = started(str(folder))
    with torch.compiler.set_stance("force_eager"), pytest.raises(OriginalWiringError, match="about to run"):
        run(lm)
    assert lm.evidence.calls == {}


@pytest.mark.parametrize("run", [logits, generated])
def test_a_model_that_someone_unguards_and_uncompiles(run: Any, healed: Path) -> None:
    lm = started(str(healed))
    farskip_compile.unguard(lm.model)
    lm.model._compiled_call_impl = None
    with pytest.raises(OriginalWiringError, match="no longer compiled in place"):
        run(lm)


@pytest.mark.parametrize("run", [logits, generated])
def test_a_graph_that_this_backend_lets_pass(run: Any, healed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = started(str(healed))
    backend = importlib.import_module("farskip_compile.compiler.backend")  # the name in the package is a function
    monkeypatch.setattr(backend.Backend, "rewire", lambda *_: CompileReport(Outcome.UNCHANGED, 5))
    with pytest.raises(OriginalWiringError, match="a graph was not rewired: unchanged as asked"):
        run(lm)
    assert lm.evidence.calls == {}


def test_what_reports_must_say(healed: Path) -> None:
    lm = started(str(healed))
    table = lm.evidence.manifest.table
    as_asked = CompileReport(Outcome.REWIRED, 5, table=table)
    changed = next(number for number, row in enumerate(table.rows) if row.left_out)
    rows = list(table.rows)
    rows[changed] = replace(rows[changed], reads=rows[changed].reads_as_written, left_out=NOTHING)
    less = replace(table, rows=tuple(rows))
    cases = {
        "no graph reached this backend": [],
        "not rewired: no residual stack": [as_asked, CompileReport(Outcome.NO_STACK, 5)],
        "left out nothing": [CompileReport(Outcome.ALREADY, 5)],
        "left out {'attention.1'": [as_asked, CompileReport(Outcome.REWIRED, 5, table=less)],
    }
    for says, reports in cases.items():
        lm.evidence.reports[:] = reports
        with pytest.raises(OriginalWiringError, match=f"generation did not run as .*{re.escape(says)}"):
            lm.evidence.check(lm.model, "generation")
    lm.evidence.reports[:] = [as_asked, as_asked]
    lm.evidence.check(lm.model, "generation")
    assert lm.evidence.calls == {"generation": 1}
    ids = ("0/0", "0/0_1", "0/1", "0/10")
    lm.evidence.reports[:] = [replace(as_asked, compile_id=one) for one in ids]
    assert lm.evidence.graphs == 3


# What is not taken


def test_wrappers(healed: Path) -> None:
    peft = pytest.importorskip("peft")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(healed)
    adapter = peft.get_peft_model(model(), peft.LoraConfig(target_modules=["q_proj"]))
    for wrapper in (torch.compile(loaded, backend="farskip"), torch.nn.DataParallel(loaded), adapter):
        with pytest.raises(OriginalWiringError, match=f"{type(wrapper).__name__} is a wrapper"):
            started(wrapper, tokenizer=tokenizer())
    loaded.compile(backend="eager")
    with pytest.raises(ConfigError, match="compiled already"):
        started(loaded, tokenizer=tokenizer())


def test_a_forward_that_was_replaced(healed: Path) -> None:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(healed)
    loaded.model.forward = loaded.model.forward.__func__.__get__(loaded.model)
    started(loaded, tokenizer=tokenizer())  # the guard's own, bound again
    loaded = transformers.AutoModelForCausalLM.from_pretrained(healed)
    loaded.model.forward = lambda *args, **kwargs: None
    with pytest.raises(ConfigError, match="the forward of model was replaced"):
        started(loaded, tokenizer=tokenizer())


@pytest.mark.parametrize("option", [{"peft": "adapter"}, {"parallelize": True}, {"backend": "seq2seq"}])
def test_arguments_that_wrap_or_shard(option: dict[str, Any], healed: Path) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(option))} would wrap or shard"):
        started(str(healed), **option)


def test_several_processes(healed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="several processes"):
        started(str(healed))


def test_a_checkpoint_without_a_manifest(tmp_path: Path) -> None:
    save(model(), tmp_path)
    (tmp_path / "model.safetensors").unlink()  # refused before any weight is loaded
    with pytest.raises(ManifestError, match="has no manifest"):
        started(str(tmp_path))


def test_a_manifest_that_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="nothing is rewired"):
        started(str(save_healed(model(), tmp_path, "none")))


def test_a_damaged_manifest(healed: Path, tmp_path: Path) -> None:
    (shutil.copytree(healed, tmp_path / "copy") / "farskip.json").write_text('{"schema": 1}')
    with pytest.raises(ManifestError, match="connectivity"):
        started(str(tmp_path / "copy"))


# How lm-eval finds it


def test_lm_eval_knows_it_by_name() -> None:
    assert get_model("farskip") is FarSkipLM


def test_the_entry_point() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lm_eval.models"]["farskip"].partition(":")
    assert getattr(importlib.import_module(module), name) is FarSkipLM
