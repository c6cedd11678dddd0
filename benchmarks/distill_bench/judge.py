# SPDX-License-Identifier: Apache-2.0
"""What a row is judged by: loss, agreement with the teacher, where its routers send the tokens, and text to read.

In:    a model with the weights of the row, its configuration, the teacher, and batches by source.
Out:   figures of a `Result`, and continuations of prompts: the most probable token each time, by `model.generate`.
Never: a gradient; a changed weight; a row judged by its own word: the teacher runs as written, without this backend,
       and the sums are made here, not by what chose the weights.

How many tokens each expert got is what the grouped experts of transformers count themselves, with `histc`: a dispatch
mode reads it while the rewired graph runs operator by operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

from distill_bench.results import Judged
from distill_bench.texts import TextData
from farskip_compile import reports
from farskip_compile.compiler.backend import backend
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.healing.causal.batches import as_batch, caller
from farskip_compile.healing.causal.teacher import evaluating

PROMPTS, PROMPT_TOKENS = 2, 24
Figures = dict[str, Any]


def judge(
    model: Any,
    config: FarSkipConfig,
    teacher: Any,
    sources: Mapping[str, Sequence[torch.Tensor]],
    bytes_per_token: Mapping[str, float],
) -> Figures:
    """What a `Result` says of `model` under `config`; expert loads are those of the first source."""
    found: dict[str, Judged] = {}
    loads: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
    original = caller(teacher, teacher)
    for source, batches in sources.items():
        of_teacher = Counting()
        torch.compiler.reset()
        compiled, counting = compiled_with_counts(model, config)
        student = caller(compiled, model)
        pairs = []
        for one in batches:
            batch = as_batch(one, one.device)
            with torch.no_grad(), evaluating(teacher), of_teacher:
                said = original(batch)
            with torch.no_grad(), evaluating(model):
                pairs.append(compare(student(batch), said, batch.targets))
        found[source] = judged(pairs, bytes_per_token[source])
        loads.append((counting.load, of_teacher.load))
    load, original_load = loads[0]
    return {
        "judged": found,
        "fullest": fullest(load),
        "moved": moved(load, original_load),
        "rewired": sum(bool(row.left_out) for row in reports().compiles[-1].rows),
    }


def compare(student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor) -> tuple[float, float, float, float]:
    """Means over a batch: losses of student and teacher, KL, agreement. Logits [B, T, V], targets [B, T - 1]."""
    log_q, log_p = (logits[:, :-1].double().log_softmax(-1) for logits in (student, teacher))
    own, other = (F.nll_loss(log.flatten(0, 1), targets.flatten()).item() for log in (log_q, log_p))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    return own, other, kl, (log_q.argmax(-1) == log_p.argmax(-1)).double().mean().item()


def judged(pairs: Sequence[tuple[float, float, float, float]], bytes_per_token: float) -> Judged:
    """Of what `compare` says of batches of equal size, each of them a stretch of text."""
    own, other, kl, top1 = torch.tensor(pairs, dtype=torch.float64).T
    error = (own - other).std().item() / math.sqrt(len(pairs)) if len(pairs) > 1 else 0.0
    loss = own.mean().item()
    return Judged(loss, kl.mean().item(), top1.mean().item(), loss / math.log(2) / bytes_per_token, error)


class Counting(TorchDispatchMode):
    """Adds up the counts of each MoE layer, in the order of the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.load: list[torch.Tensor] = []
        self._layer = 0

    def __enter__(self) -> Counting:
        self._layer = 0
        return super().__enter__()  # type: ignore[no-any-return]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.histc.default:
            count = out.double()
            if self._layer == len(self.load):
                self.load.append(torch.zeros_like(count))
            self.load[self._layer] += count
            self._layer += 1
        return out


def compiled_with_counts(model: Any, config: FarSkipConfig) -> tuple[Callable[..., Any], Counting]:
    """`model` under `config`, and what its routers do in all calls from now on."""
    counting = Counting()
    eager = replace(config, inner="eager", schedule=False)

    def receive(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        run = backend(eager)(module, inputs)

        def call(*values: Any) -> Any:
            with counting:
                return run(*values)

        return call

    return torch.compile(model, backend=receive, fullgraph=True), counting


def fullest(load: Sequence[torch.Tensor]) -> float:
    """Tokens of the fullest expert over the mean of its layer, averaged over layers; 1: perfectly balanced."""
    return float(torch.stack([layer.max() / layer.mean() for layer in load]).mean())


def moved(load: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Fraction of the tokens that go to another expert, averaged over layers: a lower bound, from the loads."""
    apart = [(one / one.sum() - two / two.sum()).abs().sum() / 2 for one, two in zip(load, other, strict=True)]
    return float(torch.stack(apart).mean())


def continue_prompts(model: Any, config: FarSkipConfig, data: TextData, new_tokens: int) -> list[tuple[str, str]]:
    """Prompts (beginnings of held-out sequences) and their continuations. The model stays compiled: use it last."""
    ids = torch.cat(data.judged_by["held_out"])
    ids = ids[:: max(1, len(ids) // PROMPTS)][:PROMPTS, :PROMPT_TOKENS]
    torch.compiler.reset()
    model.eval()
    model.compile(backend=backend(config), fullgraph=True)
    with torch.no_grad():
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            cache_implementation="static",
            pad_token_id=data.tokenizer.eos_token_id,
            eos_token_id=None,
        )
    decode = data.tokenizer.decode
    return [(decode(row[: ids.shape[1]]), decode(row[ids.shape[1] :])) for row in found]
