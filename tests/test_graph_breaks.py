# SPDX-License-Identifier: Apache-2.0
"""Graphs that hold a part of the model, and what cuts it: graph breaks, layers compiled alone, DDP's buckets."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.exc import Unsupported
from torch.testing._internal.distributed.fake_pg import FakeStore

import farskip_compile
from farskip_compile import Outcome
from farskip_compile.errors import AsyncCollectiveError, DDPSplitError, PartialModelError
from farskip_compile.models import build
from tests.distributed.ranks import run_ranks
from tests.test_errors import IDS, SMALL, Wrapped, assert_refused, compile_and_run


class Breaking(Wrapped):
    """A graph break before one layer, outside a loop (in a loop Dynamo skips the whole frame)."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.decoder.token_embedding(ids)
        rope = self.decoder.rope(hidden, hidden.shape[1])
        hidden = self.decoder.layers[0](hidden, rope)
        hidden = self.decoder.layers[1](hidden, rope)
        torch._dynamo.graph_break()
        hidden = self.decoder.layers[2](hidden, rope)
        return self.decoder.lm_head(self.decoder.final_norm(hidden))


def test_graph_break_inside_the_stack() -> None:
    error = assert_refused(Breaking(), PartialModelError, "graph break cuts the residual stack", fullgraph=False)
    assert "test_graph_breaks.py" in error.reason


class Branching(Wrapped):
    """minimind: a branch on a buffer between the embedding and the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(2, 2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.decoder.token_embedding(ids)
        if self.table[0, 0] == 0:
            self.table = torch.ones(2, 2)
        rope = self.decoder.rope(hidden, hidden.shape[1])
        for layer in self.decoder.layers:
            hidden = layer(hidden, rope)
        return self.decoder.lm_head(self.decoder.final_norm(hidden))


def test_a_branch_outside_of_the_layers_names_the_way_that_works() -> None:
    """In this package's error, beside Dynamo's own, and by `explain`; what all three name is tried."""
    error = assert_refused(Branching(), PartialModelError, "a branch depends on data", fullgraph=False)
    line = inspect.getsourcelines(Branching.forward)[1] + 2
    assert str(error.where.source).endswith(f"test_graph_breaks.py:{line}")
    assert "Hint" not in error.reason
    torch.compiler.reset()
    with pytest.raises(Unsupported) as caught:
        compile_and_run(Branching())
    (note,) = caught.value.__notes__
    refusal = farskip_compile.explain(Branching(), IDS).refusal
    assert refusal is not None
    for text in (error.way_out, note, refusal.way_out):
        assert "farskip_compile.regional(model)" in text
    torch.compiler.reset()
    model = Branching()
    expected = compile_and_run(model.decoder)
    farskip_compile.regional(model, inner="eager")
    assert torch.equal(model(IDS), expected)


def test_graph_break_inside_a_layer() -> None:
    class InLayer(Breaking):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            hidden = self.decoder.token_embedding(ids)
            rope = self.decoder.rope(hidden, hidden.shape[1])
            layer = self.decoder.layers[1]
            hidden = self.decoder.layers[0](hidden, rope)
            hidden = hidden + layer.attention(layer.attention_norm(hidden), rope)
            normed = layer.feed_forward_norm(hidden)
            print(end="")
            hidden = hidden + layer.feed_forward(normed)
            return self.decoder.lm_head(self.decoder.final_norm(hidden))

    assert_refused(InLayer(), PartialModelError, "graph break", fullgraph=False)


def test_graph_break_in_the_loop_over_layers() -> None:
    """Dynamo gives the whole frame up and compiles layer by layer; the error still says which break it was."""

    class InLoop(Wrapped):
        def between(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return hidden

    with pytest.raises(PartialModelError, match=r"compiled one by one.*torch\._dynamo\.graph_break"):
        compile_and_run(InLoop(), fullgraph=False)


class Asynchronous(Wrapped):
    """A collective with a handle before the last layer, as in hand-written overlap."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.decoder.token_embedding(ids)
        rope = self.decoder.rope(hidden, ids.shape[1])
        hidden = self.decoder.layers[1](self.decoder.layers[0](hidden, rope), rope)
        reduced = hidden.clone()
        dist.all_reduce(reduced, async_op=True).wait()
        hidden = self.decoder.layers[2](hidden + reduced, rope)
        return self.decoder.lm_head(self.decoder.final_norm(hidden))


@pytest.fixture
def one_of_two_ranks() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_of_two_ranks")
def test_async_op_names_the_line_and_the_functional_call() -> None:
    error = assert_refused(
        Asynchronous(), AsyncCollectiveError, "all_reduce is called with async_op=True", fullgraph=False
    )
    line = inspect.getsourcelines(Asynchronous)[1] + 8
    assert error.where.source is not None
    assert error.where.source.endswith(f"test_graph_breaks.py:{line}")
    assert '_functional_collectives.all_reduce(tensor, "sum", group)' in error.way_out


@pytest.mark.usefixtures("one_of_two_ranks")
def test_explain_knows_async_op_too() -> None:
    refusal = farskip_compile.explain(Asynchronous(), IDS).refusal
    assert refusal is not None
    assert refusal.error == "AsyncCollectiveError"
    assert "test_graph_breaks.py" in refusal.where


def test_graph_break_after_the_model_is_fine() -> None:
    class Logged(Wrapped):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            logits = super().forward(ids)
            torch._dynamo.graph_break()
            return logits * 2

    compile_and_run(Logged(), fullgraph=False)
    outcomes = [report.outcome for report in farskip_compile.reports().compiles]
    assert outcomes == [Outcome.REWIRED, Outcome.NO_STACK]


@pytest.mark.usefixtures("one_of_two_ranks")
def test_layers_compiled_one_by_one() -> None:
    """A graph break in another model of this process is not the reason."""
    with pytest.raises(AsyncCollectiveError):
        compile_and_run(Asynchronous(), fullgraph=False)
    model = build("mixtral", **SMALL)
    for layer in model.layers:
        layer.compile(backend="farskip", fullgraph=True)
    with pytest.raises(PartialModelError, match="layers seem to be compiled one by one") as caught:
        model(IDS)
    assert "graph break" not in caught.value.reason


def ddp_on_rank(rank: int, world_size: int) -> str:
    model = nn.parallel.DistributedDataParallel(build("mixtral", **SMALL))
    compiled = torch.compile(model, backend="farskip", options={"inner": "eager"})
    try:
        compiled(IDS)
    except DDPSplitError as error:
        refused = error.way_out
    else:
        return "not refused"
    torch.compiler.reset()
    torch._dynamo.config.optimize_ddp = False
    compiled(IDS).sum().backward()
    return refused if farskip_compile.reports().compiles[-1].outcome is Outcome.REWIRED else "not rewired"


def test_ddp_graph_splitting() -> None:
    for answer in run_ranks(ddp_on_rank, 2):
        assert "optimize_ddp = False" in answer
