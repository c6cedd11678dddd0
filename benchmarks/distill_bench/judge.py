"""What a row is judged by: loss, agreement with the teacher, and where its routers send the tokens.

In:    a model with the weights of the row, its configuration, the teacher, and batches by source.
Out:   `Verdict`.
Never: a gradient; a row judged by its own word: the teacher is run as written, without this backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distill_bench.expert_load import Counting, compiled_with_counts, fullest, moved
from distill_bench.results import Judged
from farskip_compile import last_reports
from farskip_compile.config import FarSkipConfig
from farskip_compile.distill.batches import Batch, as_batch, caller
from farskip_compile.distill.evaluate import Evaluation
from farskip_compile.distill.ranks import Ranks
from farskip_compile.distill.teacher import FrozenTeacher


@dataclass(frozen=True)
class Verdict:
    """Of one row."""

    judged: dict[str, Judged]
    """By source."""
    fullest: float
    moved: float
    rewired: int


def judge(model: Any, config: FarSkipConfig, teacher: Any, sources: Mapping[str, Sequence[torch.Tensor]]) -> Verdict:
    """Judge `model` under `config`; the load is that of the first source."""
    found: dict[str, Judged] = {}
    loads: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
    rewired = 0
    original = FrozenTeacher(teacher, copied=False)
    for source, batches in sources.items():
        ranks, of_teacher = Ranks(model), Counting()

        def said_by_teacher(batch: Batch, counting: Counting = of_teacher) -> torch.Tensor:
            with counting:
                return original(batch)

        evaluation = Evaluation([as_batch(one, ranks.device) for one in batches], said_by_teacher, ranks)
        torch.compiler.reset()
        compiled, counting = compiled_with_counts(model, config)
        said = evaluation(caller(compiled, model), model)
        rewired = sum(bool(row.left_out) for row in last_reports()[-1].rows)
        assert said.kl is not None
        assert said.top1 is not None
        found[source] = Judged(said.loss, said.kl, said.top1)
        loads.append((counting.load, of_teacher.load))
    load, original_load = loads[0]
    return Verdict(found, fullest(load), moved(load, original_load), rewired)
