# SPDX-License-Identifier: Apache-2.0
"""vLLM's tokens and log-probabilities against those of transformers, with the same weights in the same wiring.

In:    a checkpoint folder, prompts, keyword arguments for vLLM.
Out:   `ServingComparison`: for each prompt how many of vLLM's tokens transformers chooses, too, and how far the
       log-probabilities are apart; the same against the original wiring, which shows that the two can be told apart.
Never: lets one side see the other: vLLM runs in a process of its own, with its cache and its batches; transformers
       computes each whole sequence at once, compiled by this package with the eager backend.

A token that is not transformers' first choice counts as chosen if both are within the tolerance: rounding decides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from farskip_compile.base.choices import ServedDtype
from farskip_compile.base.json_files import JsonRecord
from farskip_compile.errors import ConfigError, VerificationError
from farskip_compile.vllm.asked import ASKED, ServingOptions

TOLERANCE: Mapping[ServedDtype, float] = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 1e-1}
"""Largest difference of log-probabilities, by dtype."""
PROMPTS = (
    "The residual stream is a sum",
    "Attention reads it without",
    "All ranks must issue collectives",
    "1 2 3 5 8",
)
SHOWN_LINES = 15
"""Of a process that failed."""


@dataclass(frozen=True)
class VllmAnswer:
    """What vLLM made of one prompt."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class ComparedAnswer:
    """One answer against one model of transformers."""

    tokens: int
    equal: int
    """Tokens that are its first choice, or as good as that."""
    apart: float
    """Largest difference of log-probabilities."""


@dataclass(frozen=True)
class ServingComparison(JsonRecord):
    """All answers."""

    ALSO_WRITTEN = ("holds",)

    rewired: tuple[ComparedAnswer, ...]
    original: tuple[ComparedAnswer, ...]
    """Against the model in its original wiring."""
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether vLLM serves the rewired model."""
        return all(row.equal == row.tokens and row.apart <= self.tolerance for row in self.rewired)


def compare(
    checkpoint: Path,
    *,
    options: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    prompts: Sequence[str] = PROMPTS,
    tokens: int = 16,
    dtype: ServedDtype = "float32",
    tolerance: float | None = None,
    tell: Callable[[str], None] = lambda step: None,
) -> ServingComparison:
    """See the module's contract.

    Args:
        checkpoint: a folder, guarded or not.
        options: what is asked for, as in `additional_config["farskip"]`; None: what the checkpoint says.
        engine: keyword arguments of `vllm.LLM`.
        prompts: texts.
        tokens: how many vLLM adds to each.
        dtype: of both.
        tolerance: largest difference of log-probabilities; None: by the dtype.
        tell: called with what is being done.

    Raises:
        ConfigError: vLLM is not installed, or transformers can't load the checkpoint.
        VerificationError: vLLM did not start; with the last lines that it wrote.
        FarSkipError: transformers' model can't be rewired as asked.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    arguments: dict[str, Any] = {
        "model": str(checkpoint),
        "dtype": dtype,
        "max_model_len": max(map(len, ids)) + tokens + 1,
    }
    arguments |= {"disable_log_stats": True, **(engine or {})}
    if options is not None:
        arguments["additional_config"] = {**arguments.get("additional_config", {}), ASKED: dict(options)}
    tell("vLLM loads the model and answers")
    found = _served({"engine": arguments, "prompts": ids, "tokens": tokens})
    limit = TOLERANCE[dtype] if tolerance is None else tolerance
    asked = ServingOptions(**(options or {}))
    wanted = {"connectivity": asked.connectivity, "layers": asked.layers, "manifest": asked.manifest or None}
    if asked.manifest is None and options is None:
        wanted["manifest"] = str(checkpoint)
    tell("transformers, rewired")
    rewired = _rows(found, _model(checkpoint, dtype, {key: value for key, value in wanted.items() if value}), limit)
    tell("transformers, as written")
    original = _rows(found, _model(checkpoint, dtype, None), limit)
    return ServingComparison(rewired, original, limit)


def _served(request: Mapping[str, Any]) -> list[VllmAnswer]:
    """What vLLM answers."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered, log = (Path(folder) / name for name in ("request.json", "answers.json", "log"))
        asked.write_text(json.dumps(request))
        command = [sys.executable, "-m", "farskip_compile.vllm.generate", str(asked), str(answered)]
        with log.open("w") as output:
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ, check=False)
        if done.returncode or not answered.exists():
            raise VerificationError(
                f"vLLM did not answer (exit status {done.returncode}):\n{_reason(log.read_text(errors='replace'))}",
                way_out="mend what it says; its options are given with --engine",
            )
        content = json.loads(answered.read_text())
    return [VllmAnswer(tuple(one["prompt"]), tuple(one["tokens"]), tuple(one["logprobs"])) for one in content]


def _reason(log: str) -> str:
    """The lines about an error of this package, else the last ones."""
    lines = [line.split("] ", 1)[-1] if "ERROR" in line else line for line in log.splitlines()]
    start = next((place for place, line in enumerate(lines) if "farskip_compile.errors." in line), None)
    if start is None:
        return "\n".join(lines[-SHOWN_LINES:])
    return "\n".join([lines[start].split("farskip_compile.errors.", 1)[1], *lines[start + 1 : start + 3]])


def _model(checkpoint: Path, dtype: str, options: Mapping[str, Any] | None) -> Any:
    """Transformers' model as a function of ids; `options` of the rewiring, or None for the original wiring."""
    from transformers import AutoModelForCausalLM

    from farskip_compile.compiler.guard.forward import unguard
    from farskip_compile.tools.prepare.main import prepare

    try:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"transformers can't load {checkpoint}: {error}", way_out="give the folder of a checkpoint"
        ) from error
    if options is None:
        unguard(model)
        return model
    prepare(model)
    return torch.compile(model, backend="farskip", fullgraph=True, dynamic=True, options={**options, "inner": "eager"})


def _rows(answers: Sequence[VllmAnswer], model: Any, tolerance: float) -> tuple[ComparedAnswer, ...]:
    return tuple(_row(answer, model, tolerance) for answer in answers)


def _row(answer: VllmAnswer, model: Any, tolerance: float) -> ComparedAnswer:
    ids = torch.tensor([[*answer.prompt, *answer.tokens]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(answer.prompt) - 1 : -1]
    known = logits.float().log_softmax(-1)
    chosen = known.gather(-1, torch.tensor(answer.tokens)[:, None])[:, 0]
    equal = int((known.max(-1).values - chosen <= tolerance).sum())
    return ComparedAnswer(len(answer.tokens), equal, float((chosen - torch.tensor(answer.logprobs)).abs().max()))
