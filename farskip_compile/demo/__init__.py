# SPDX-License-Identifier: Apache-2.0
"""`farskip demo`: rewire models, compare them with hand-written FarSkip forms, and show what overlaps.

Contract: `run_demo` needs no GPU and no network. It starts two gloo ranks on this machine, then checks an unmodified
`transformers` model in this process. A part that can't run is in the result with the reason: skipped if a program or
package is missing, failed otherwise.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from dataclasses import replace
from datetime import datetime

import torch

from farskip_compile.demo.launch import Done, Tell, run_on_ranks
from farskip_compile.demo.overlap import OVERLAP
from farskip_compile.demo.ranks import DROPLESS, INDUCTOR, PADDED, PREFILL, TRAINING, check
from farskip_compile.demo.results import Demo, DemoCase, DemoComparison
from farskip_compile.models.transformers_form import TransformersFarSkipForm, tiny_deepseek_v3
from farskip_compile.tools.explain import versions

RANKS = 2
TRANSFORMERS = DemoCase(
    "transformers DeepseekV3ForCausalLM",
    "The unmodified class of the transformers library, tiny and random, in one process",
)


def run_demo(tell: Tell, done: Done, command: str = "farskip demo") -> Demo:
    """Run everything.

    Args:
        tell: called with what is being done.
        done: called with each finished case, and with the comparison of the overlap part.
        command: what the user typed, for the report.
    """
    start = time.perf_counter()
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    parts: list[DemoCase | DemoComparison] = []

    def finish(part: DemoCase | DemoComparison) -> None:
        parts.append(part)
        done(part)

    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as Inductor calls it
    missing = shutil.which(compiler) is None
    run_on_ranks([PADDED, DROPLESS] if missing else [PADDED, DROPLESS, INDUCTOR, OVERLAP], RANKS, tell, finish)
    if missing:
        problem = f"Inductor needs a C++ compiler, and there is no {compiler}"
        finish(DemoCase(INDUCTOR.title, INDUCTOR.about, RANKS, problem, skipped=True))
        finish(DemoComparison(OVERLAP.title, OVERLAP.about, RANKS, problem, skipped=True))
    finish(transformers_case(tell))
    cases = tuple(part for part in parts if isinstance(part, DemoCase))
    overlap = next(part for part in parts if isinstance(part, DemoComparison))
    return Demo(cases, time.perf_counter() - start, command, started, versions(), overlap)


def transformers_case(tell: Tell = lambda _: None, layers: int = 4) -> DemoCase:
    """The unmodified `transformers` model against its hand-written form."""
    if importlib.util.find_spec("transformers") is None:
        problem = "transformers is not installed: pip install 'farskip-compile[hf]'"
        return replace(TRANSFORMERS, problem=problem, skipped=True)
    try:
        model = tiny_deepseek_v3(layers=layers).to(torch.float64)
        model.set_experts_implementation("batched_mm")  # the one that takes float64 and is captured whole
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, model.config.vocab_size, (2, 8), generator=generator)
        oracle = TransformersFarSkipForm(model)
        phases = (PREFILL, TRAINING)
        report, checks = check(model, oracle, ids, "eager", phases, lambda one: tell(f"{TRANSFORMERS.title}: {one}"))
    except Exception as error:
        return replace(TRANSFORMERS, problem=f"{type(error).__name__}: {error}")
    return replace(TRANSFORMERS, report=report, checks=tuple(checks))
