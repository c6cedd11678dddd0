# SPDX-License-Identifier: Apache-2.0
"""Imported by the server that ranks are forked from: what a first compile of a process fills is filled once.

Operators' schemas, decompositions, patterns, and what sympy remembers take each process about 2 s. One small model is
compiled, forward and backward, down to the text of its kernels: nothing is built or run, and no thread is started,
which no fork would take along. A build of PyTorch for GPUs starts autograd's threads all the same, without a GPU too;
then autograd refuses to run in a fork, so nothing is compiled here.
"""

from __future__ import annotations

from contextlib import suppress

import torch

import farskip_compile
from farskip_compile._compat.generated import generating_only
from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.models import ParallelConfig, build
from farskip_compile.records.compile import clear_reports


def compile_once() -> None:
    """Leave nothing but what is remembered: no report, and no compiled code."""
    graphs: list[object] = []
    with fake_ranks(2) as group, generating_only(graphs.append):
        model = build("mixtral", parallel=ParallelConfig(ep_group=group), layers=("moe",), vocab_size=32, experts=4)
        with suppress(RuntimeError):  # there is nothing to call
            torch.compile(model, backend="farskip", fullgraph=True)(torch.zeros(2, 4, dtype=torch.int64))
    assert len(graphs) == 2, "the model was not compiled"
    torch.compiler.reset()
    farskip_compile.reports().clear()
    clear_reports()


if not torch.backends.cuda.is_built():
    compile_once()
