# SPDX-License-Identifier: Apache-2.0
"""vLLM serves the rewired model: the same tokens and log-probabilities as transformers with this package's backend.

Each test starts vLLM in processes of its own, on prompts of different lengths, in batches, prefill and decode.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from farskip_compile.vllm import compare as comparing
from tests.vllm.like_a_gpu import installed_in
from tests.vllm.real.conftest import TOKENS

CPU = {"custom_ops": ["-rotary_embedding"]}
"""The kernel of this build is wrong for DeepSeek by itself."""
MLA = {"attention_backend": "CPU_MLA"}
"""The other backend for latent attention takes no float32."""


EXPERTS, ATTENTION = ["moe_forward"], ["attention"]


@pytest.fixture
def like_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode 3 with the graphs that a GPU gets."""
    monkeypatch.setenv("PYTHONPATH", str(installed_in(tmp_path)))
    monkeypatch.setenv("LIKE_A_GPU", "eager")


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1" if (os.cpu_count() or 1) > 1 else "0|0")
    return {"tensor_parallel_size": 2}


def served(folder: Path, options: dict[str, Any] | None = None, **engine: Any) -> comparing.ServingComparison:
    compilation = {**CPU, **engine.pop("compilation", {})}
    arguments = {"max_num_seqs": 8, "max_num_batched_tokens": 256, "compilation_config": compilation, **engine}
    found = comparing.compare(folder, options=options, engine=arguments, tokens=TOKENS)
    assert found.holds, found
    assert any(row.apart > found.tolerance for row in found.original), "rewired or not can't be told apart here"
    return found


def test_inductor(checkpoint, note):
    note("qwen3_moe", "2, Inductor", 1, served(checkpoint("qwen3_moe"), {"connectivity": "full"}))


@pytest.mark.usefixtures("like_a_gpu")
def test_stock_torch_compile(checkpoint, note):
    found = served(checkpoint("mixtral"), {"connectivity": "mlp"}, compilation={"mode": 1, "backend": "eager"})
    note("mixtral, mlp", "1, eager", 1, found)


@pytest.mark.usefixtures("like_a_gpu")
def test_a_guarded_checkpoint_in_pieces(checkpoint, note):
    note("deepseek_v3, guarded", "3, pieces", 1, served(checkpoint("deepseek_v3", "manifest"), **MLA))


@pytest.mark.usefixtures("like_a_gpu")
def test_amds_keys(checkpoint, note):
    note("mixtral, AMD's keys", "3, pieces", 1, served(checkpoint("mixtral", "amd")))


@pytest.mark.usefixtures("like_a_gpu")
def test_sinks_and_windows(checkpoint, note):
    found = served(checkpoint("gpt_oss", "plain", connectivity="attention"))
    note("gpt_oss, attention, manifest", "3, pieces", 1, found)


def test_two_ranks_under_inductor(checkpoint, note, two_ranks):
    found = served(checkpoint("qwen3_moe"), {"connectivity": "full", "overlap": True}, **two_ranks)
    note("qwen3_moe, overlap", "2, Inductor", 2, found)


VOCABULARIES = [("qwen3_moe", 600), ("granitemoe", 49155)]
"""Families, and numbers of tokens that are no multiple of 64: vLLM pads the table of the embedding."""


@pytest.mark.parametrize(("family", "vocabulary"), VOCABULARIES)
def test_a_vocabulary_of_any_size(family, vocabulary, checkpoint, note):
    """A table that is longer than the manifest says, by vLLM's padding, is the model's."""
    note(
        f"{family}, {vocabulary} tokens",
        "2, Inductor",
        1,
        served(checkpoint(family, "manifest", vocabulary=vocabulary)),
    )


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize(("family", "vocabulary"), VOCABULARIES)
def test_a_vocabulary_of_any_size_on_two_ranks(family, vocabulary, checkpoint, note, two_ranks):
    """Each rank holds half of the padded table."""
    found = served(checkpoint(family, "manifest", vocabulary=vocabulary), **two_ranks)
    note(f"{family}, {vocabulary} tokens", "3, pieces", 2, found)


def test_speculation_by_ngrams(checkpoint, note):
    """The model checks several tokens in each step; no second model is compiled."""
    speculative = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    found = served(checkpoint("qwen3_moe"), {"connectivity": "full"}, speculative_config=speculative)
    note("qwen3_moe, n-grams", "2, Inductor", 1, found)


@pytest.mark.usefixtures("like_a_gpu")
def test_one_all_reduce_for_each_layer(checkpoint, note, two_ranks):
    options = {"connectivity": "mlp", "merge_reductions": True}
    found = served(checkpoint("deepseek_v3"), options, **two_ranks, **MLA)
    note("deepseek_v3, mlp, one all-reduce a layer", "3, pieces", 2, found)


@pytest.mark.usefixtures("like_a_gpu")
def test_all_reduces_run_beside_attention_and_experts(checkpoint, note, two_ranks, monkeypatch, environment):
    """And vLLM runs them in that order: read off the graph that it has saved, split."""
    cache = environment / "overlapped"
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(cache))
    options = {"connectivity": "full", "overlap": True, "merge_reductions": True}
    found = served(checkpoint("deepseek_v3", "manifest"), options, **two_ranks, **MLA)
    note("deepseek_v3, guarded, overlap", "3, pieces", 2, found)
    for file in cache.rglob("computation_graph.py"):
        # of the last layer, whose stream nothing reads in between, attention and shared experts are reduced apart
        assert hidden(order_of(file.read_text())) == [EXPERTS, ATTENTION, EXPERTS, ATTENTION, EXPERTS, EXPERTS, []]


def order_of(text: str) -> list[str]:
    """What vLLM runs, piece after piece: launches, waits, attention and experts."""
    pieces: dict[str, str] = {}
    for block in re.split(r"\n\s*class (?=\w+\()", re.sub(r";  [^\n]*", "", text))[1:]:
        pieces[block.split("(")[0]] = block
    main = next(block for name, block in pieces.items() if not name.startswith("submod"))
    names: list[str] = []
    for piece in dict.fromkeys(re.findall(r"self\.(submod_\d+)", main)):
        names += re.findall(r"= torch\.ops\.\w+\.(all_reduce|wait_tensor|moe_forward|\w+attention_with)", pieces[piece])
    return ["attention" if name.endswith("attention_with") else name for name in names]


def hidden(order: list[str]) -> list[list[str]]:
    """For each all-reduce of the three MoE layers, what runs until its wait; launches are awaited in their order."""
    flights: list[list[str]] = []
    waiting: list[list[str]] = []
    for name in order:
        if name == "all_reduce":
            waiting.append([])
            flights.append(waiting[-1])
        elif name == "wait_tensor":
            waiting.pop(0)
        else:
            for flight in waiting:
                flight.append(name)
    return flights[-7:]


def test_the_server_answers(checkpoint, tmp_path):
    """`vllm serve CHECKPOINT`, as it is; and the tokens are those that are served without HTTP."""
    folder = checkpoint("qwen3_moe", "manifest")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(under_its_own_name(tmp_path))}
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(folder), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "128"]
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        answer = asked(server, f"http://127.0.0.1:{port}/v1/completions", str(folder), log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == TOKENS
    assert "farskip, rank 0: rewired 7 of 8 sub-blocks (4 layers, 4 MoE): standard -> full, verified" in log.read_text()


def under_its_own_name(folder: Path) -> Path:
    """A place on `PYTHONPATH` where vllm-cpu is known as vllm, which its command asks for the version of."""
    import vllm

    info = folder / "vllm-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {vllm.__version__}+cpu\n")
    return folder


def asked(server: subprocess.Popen[bytes], address: str, model: str, log: Path) -> Any:
    body = {"model": model, "prompt": "All ranks", "max_tokens": TOKENS, "temperature": 0, "logprobs": 1}
    body["ignore_eos"] = True
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])
