# SPDX-License-Identifier: Apache-2.0
"""Losses of hidden states, chunk by chunk: those of the whole logits, with their gradients, in bounded memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from farskip_compile.compiler.backend import backend
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.healing.causal.asking import Asking
from farskip_compile.healing.causal.batches import IGNORED, as_batch
from farskip_compile.healing.causal.evaluate import Evaluation
from farskip_compile.healing.causal.losses import agreement, by_sequence, forward_kl, next_token_loss
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.causal.teacher import FrozenTeacher, TopLogits
from farskip_compile.models import FarSkipForm
from tests.distill.common import VOCABULARY, batches, small

CPU = torch.device("cpu")
ROW = VOCABULARY * 8
"""Bytes of one position's logits."""


class Tied(nn.Module):
    """Its head is its embedding, and its logits are capped."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.norm = nn.Embedding(VOCABULARY, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.double()

    def forward(self, ids):
        return 3.0 * torch.tanh(self.head(self.norm(self.embed(ids).cumsum(1))))


@pytest.fixture
def batch():
    ids = batches(1, size=3, length=7)[0]
    labels = ids.clone()
    labels[0, 2] = labels[2, 4:] = IGNORED
    return as_batch({"input_ids": ids, "labels": labels}, CPU)


def grads(loss, model):
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters()}


def of_hidden(model, batch):
    answer = Asking(model, batch).of(model)(batch)
    assert answer.hidden is not None
    return answer.said


@pytest.mark.parametrize("rows", [1, 4, 5, 1000])
@pytest.mark.parametrize("known", ["logits", "hidden", "largest", "text"])
def test_chunks_are_the_whole(rows, known, batch):
    student, teacher = Tied(0), Tied(1)
    ids, targets, memory = batch.inputs["input_ids"], batch.targets, rows * ROW
    logits, theirs = student(ids), teacher(ids).detach()
    if known == "text":
        whole, parts = next_token_loss(logits, targets), next_token_loss(of_hidden(student, batch), targets, memory)
    else:
        top = TopLogits.of(theirs, 4)
        given = {"logits": theirs, "hidden": of_hidden(teacher, batch), "largest": top}[known]
        whole = forward_kl(logits, top if known == "largest" else theirs, targets)
        parts = forward_kl(of_hidden(student, batch), given, targets, memory)
        same = agreement(of_hidden(student, batch), given, targets, memory)
        assert 0 < same.item() == agreement(logits, theirs, targets).item() < 15
    assert parts.item() == pytest.approx(whole.item(), rel=1e-12)
    expected, found = grads(whole / 7, student), grads(parts / 7, student)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-12, atol=1e-12 * value.abs().max().item()), name


def test_the_teacher_has_no_gradient_and_the_text_no_teacher(batch):
    student, teacher = Tied(0), Tied(1)
    forward_kl(of_hidden(student, batch), of_hidden(teacher, batch), batch.targets, ROW).backward()
    assert all(value.grad is None for value in teacher.parameters())
    assert all(value.grad is not None for value in student.parameters())


def test_a_frozen_head_has_no_gradient(batch):
    student = Tied(0)
    student.head.weight = nn.Parameter(student.head.weight.detach().clone(), requires_grad=False)
    next_token_loss(of_hidden(student, batch), batch.targets, ROW).backward()
    assert student.head.weight.grad is None
    expected = student.embed.weight.grad.clone()
    student.zero_grad()
    next_token_loss(student(batch.inputs["input_ids"]), batch.targets).backward()
    assert torch.allclose(student.embed.weight.grad, expected, rtol=1e-12)


def test_a_batch_without_targets_is_zero_with_gradients(batch):
    student, nothing = Tied(0), torch.full_like(batch.targets, IGNORED)
    loss = forward_kl(of_hidden(student, batch), of_hidden(Tied(1), batch), nothing, ROW)
    assert loss.item() == 0.0
    assert all(not value.any() for value in grads(loss, student).values())


def test_largest_logits_in_parts(batch):
    teacher = Tied(1)
    whole, parts = TopLogits.of(teacher(batch.inputs["input_ids"]), 5), TopLogits.of(of_hidden(teacher, batch), 5, ROW)
    assert torch.equal(parts.indices, whole.indices)
    assert torch.allclose(parts.values, whole.values, rtol=1e-6)


class Largest(TorchDispatchMode):
    """The largest tensor of the form [.., vocabulary] that any operator makes, in positions."""

    positions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor) and one.dim() > 1 and one.shape[-1] == VOCABULARY:
                self.positions = max(self.positions, one.numel() // VOCABULARY)
        return out


@pytest.mark.parametrize("known", ["hidden", "largest", "text"])
def test_no_tensor_of_logits_is_larger_than_the_limit(known, batch):
    """The embedding and the head have 8 times the vocabulary, so that limit is 9 positions."""
    student, teacher = Tied(0), Tied(1)
    known = {"hidden": of_hidden(teacher, batch), "largest": TopLogits.of(teacher(batch.inputs["input_ids"]), 4)}.get(
        known
    )
    asking = Asking(student, batch)
    with Largest() as seen:
        said = asking.of(student)(batch).said
        loss = (
            next_token_loss(said, batch.targets, 9 * ROW)
            if known is None
            else forward_kl(said, known, batch.targets, 9 * ROW)
        )
        loss.backward()
        by_sequence(said, known, batch.targets, 9 * ROW)
    assert seen.positions == 9


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_in_the_graph_of_a_rewired_model(inner, batch):
    """The hidden states leave the graph, the logits don't; gradients are those of the form written by hand."""
    layers = ("moe", "moe") if inner == "eager" else ("moe",)  # Inductor is slow
    model, oracle, teacher = small(layers=layers), FarSkipForm(small(layers=layers)), small(seed=2)
    compiled = torch.compile(model, backend=backend(FarSkipConfig(inner=inner)), fullgraph=True)
    asking = Asking(model, batch)
    answer = asking.of(compiled)(batch)
    assert answer.logits.shape == (3, 1, VOCABULARY)
    theirs = teacher(batch.inputs["input_ids"]).detach()
    found = grads(forward_kl(answer.said, theirs, batch.targets, 4 * ROW) + answer.tie(), model)
    expected = grads(forward_kl(oracle(batch.inputs["input_ids"]), theirs, batch.targets), oracle.decoder)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-9, atol=1e-10), name
    again = asking.of(compiled)(batch).hidden.states  # the same graph, compiled once
    assert torch.equal(again, answer.hidden.states)
    assert compiled(batch.inputs["input_ids"]).shape == (3, 7, VOCABULARY)


def test_under_autocast_the_head_runs_in_its_precision(batch):
    """The logits are those that the model gives, rounded to 16 bits."""
    model = Tied(0).float()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        answer, logits = Asking(model, batch).of(model)(batch), model(batch.inputs["input_ids"])
    with torch.no_grad():
        found = answer.hidden.logits(answer.hidden.states)
    assert found.dtype == logits.dtype == torch.bfloat16
    assert torch.equal(found, logits)


def test_an_evaluation_of_hidden_states_is_that_of_logits(batch, monkeypatch):
    """Whether what the teacher said is kept, or it is asked again."""
    model, teacher = Tied(0), Tied(1)
    ranks = TrainingRanks(model)
    given = [batch, as_batch(batches(1)[0], CPU)]
    said_whole = lambda one: model(one.inputs["input_ids"])  # noqa: E731
    whole = Evaluation(given, FrozenTeacher(teacher), ranks)(said_whole, model)
    ours, theirs = Asking(model, batch), Asking(teacher, batch)
    of_teacher, asked = FrozenTeacher(teacher, asking=theirs), []

    def counted(one):
        asked.append(one)
        return of_teacher(one)

    for room in (2**30, 3 * 7 * 8 * 8 + 1, 0):
        monkeypatch.setattr("farskip_compile.healing.causal.evaluate.KEPT", room)
        evaluation = Evaluation(given, counted, ranks, 4 * ROW)
        asked.clear()
        found = evaluation(lambda one: ours.of(model)(one).said, model)
        assert len(asked) == {2**30: 0, 3 * 7 * 8 * 8 + 1: 1, 0: 2}[room]
        assert (found.loss, found.kl) == (pytest.approx(whole.loss, rel=1e-12), pytest.approx(whole.kl, rel=1e-12))
        assert found.top1 == whole.top1
        assert torch.allclose(found.per_sequence, whole.per_sequence, rtol=1e-11)
