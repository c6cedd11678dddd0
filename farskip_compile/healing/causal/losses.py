# SPDX-License-Identifier: Apache-2.0
"""How far a student is from its teacher, or from the text.

In:    what a student and its teacher said: logits [B, T, V], hidden states from which logits can be computed, or of a
       teacher its largest logits; the targets [B, T - 1].
Out:   sums over target tokens, not means, so that ranks and accumulated batches can be combined.
Never: a softmax in less than float32. Logits of hidden states that take more bytes than the limit: they are computed
       for a chunk of positions at a time, with their gradients, which are all that is kept of them.

`forward_kl` is eq. 4 of arXiv 2511.11505 (section 2.2): the sum over targets t of
KL(p_teacher(. | <t) || p_student(. | <t)). From the k largest logits of a teacher it is the KL of k + 1 outcomes, the
last of which is "any other token": never more than the KL over the whole vocabulary, and equal to it where k is the
size of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from farskip_compile.healing.causal.asking import MEMORY, Hidden, at_a_time
from farskip_compile.healing.causal.batches import IGNORED
from farskip_compile.healing.causal.teacher import TopLogits

Said = torch.Tensor | Hidden
TeacherOutput = torch.Tensor | Hidden | TopLogits
Measure = Callable[[torch.Tensor, torch.Tensor | TopLogits | None, torch.Tensor], torch.Tensor]
"""Of a student's logits [N, V], what is known of its teacher's, and targets [N]: a number for each position [N]."""


def forward_kl(student: Said, teacher: TeacherOutput, targets: torch.Tensor, memory: int = MEMORY) -> torch.Tensor:
    """KL(teacher || student) in nats, summed over the positions that have a target."""
    return _summed(_kl, student, teacher, targets, memory)


def next_token_loss(student: Said, targets: torch.Tensor, memory: int = MEMORY) -> torch.Tensor:
    """Cross-entropy with the targets in nats, summed."""
    return _summed(_cross_entropy, student, None, targets, memory)


def agreement(student: Said, teacher: TeacherOutput, targets: torch.Tensor, memory: int = MEMORY) -> torch.Tensor:
    """The number of positions with a target at which both give the largest probability to the same token."""
    with torch.no_grad():
        return _summed(_agrees, student, teacher, targets, memory)


@torch.no_grad()
def by_sequence(
    student: Said, teacher: TeacherOutput | None, targets: torch.Tensor, memory: int = MEMORY
) -> torch.Tensor:
    """Cross-entropy, KL, agreements and targets of each sequence: [4, B], sums in float64.

    Without a teacher, KL and agreements are 0.
    """
    chosen = targets != IGNORED
    found = torch.zeros(4, len(targets), dtype=torch.float64, device=targets.device)
    rows = chosen.nonzero()[:, 0]
    for part in _parts(student, chosen, memory):
        logits, wanted = _rows(student, chosen, part), targets[chosen][part]
        known = _rows(teacher, chosen, part) if teacher is not None else None
        measures = (_cross_entropy, _kl, _agrees) if known is not None else (_cross_entropy,)
        for number, measure in enumerate(measures):
            found[number].index_add_(0, rows[part], measure(logits, known, wanted).double())
    found[3] = chosen.sum(-1)
    return found


def _summed(
    measure: Measure, student: Said, teacher: TeacherOutput | None, targets: torch.Tensor, memory: int
) -> torch.Tensor:
    chosen = targets != IGNORED
    wanted = targets[chosen]

    def of_part(logits: torch.Tensor, part: slice) -> torch.Tensor:
        with torch.no_grad():
            known = _rows(teacher, chosen, part) if teacher is not None else None
        return measure(logits, known, wanted[part]).sum()

    parts = _parts(student, chosen, memory)
    if isinstance(student, Hidden):
        names, values = list(student.values), list(student.values.values())
        chunks = _Chunks(names, student, of_part, parts, torch.is_grad_enabled())
        return _OfChunks.apply(chunks, student.states[:, :-1][chosen], *values)
    if student.requires_grad and torch.is_grad_enabled():
        parts = [slice(None)]  # parts of logits that are whole anyway would have gradients as large as the whole
    return torch.stack([of_part(_rows(student, chosen, part), part) for part in parts]).sum()


def _parts(student: Said, chosen: torch.Tensor, memory: int) -> list[slice]:
    """Slices of the positions that have a target, at least one."""
    if isinstance(student, Hidden):
        size = at_a_time(student.head.vocabulary, student.states.dtype, memory)
    else:
        size = at_a_time(student.shape[-1], student.dtype, memory)
    count = int(chosen.sum())
    return [slice(at, at + size) for at in range(0, max(count, 1), size)]


def _rows(of: Any, chosen: torch.Tensor, part: slice) -> Any:
    """Logits [N, V] of a part of the positions that have a target; or of `TopLogits`, such a part."""
    if isinstance(of, TopLogits):
        return TopLogits(of.values[chosen][part], of.indices[chosen][part])
    row, position = (one[part] for one in chosen.nonzero(as_tuple=True))
    if isinstance(of, Hidden):
        return of.logits(of.states[row.to(of.states.device), position.to(of.states.device)].to(chosen.device))
    return of[row, position]


@dataclass(frozen=True, eq=False)
class _Chunks:
    """A loss whose logits are computed in parts."""

    names: list[str]
    """Of the tensors of the head, in order."""
    hidden: Hidden
    of_part: Callable[[torch.Tensor, slice], torch.Tensor]
    parts: list[slice]
    is_trained: bool

    def __call__(self, states: torch.Tensor, values: tuple[torch.Tensor, ...], part: slice) -> torch.Tensor:
        """The loss of a part, of which these are the states [N, H]."""
        return self.of_part(self.hidden.logits(states, dict(zip(self.names, values, strict=True))), part)


class _OfChunks(torch.autograd.Function):
    """The sum of a loss over chunks. Gradients are computed with it, since then no logits are computed twice."""

    @staticmethod
    def forward(ctx: Any, chunks: _Chunks, states: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        """The loss; `states` [N, H] of the positions that have a target, `values` of the head."""
        needed = ctx.needs_input_grad[1:]
        if not (chunks.is_trained and any(needed)):
            return _total([chunks(states[part], values, part) for part in chunks.parts])
        leaves = tuple(one.detach().requires_grad_(need) for one, need in zip(values, needed[1:], strict=True))
        grads = [
            torch.zeros_like(one, dtype=_at_least_float32(one)) if need and at else None
            for at, (one, need) in enumerate(zip((states, *values), needed, strict=True))
        ]
        of_states, found = torch.zeros_like(states), []
        for part in chunks.parts:
            here = states[part].detach().requires_grad_(needed[0])
            with torch.enable_grad():
                loss = chunks(here, leaves, part)
            asked = [one for one in (here, *leaves) if one.requires_grad]
            gave = iter(torch.autograd.grad(loss, asked, allow_unused=True))
            for at, need in enumerate(needed):
                grad = next(gave) if need else None
                if grad is not None and at == 0:
                    of_states[part] = grad
                elif grad is not None:
                    grads[at].add_(grad)  # type: ignore[union-attr]
            found.append(loss.detach())
        grads[0] = of_states if needed[0] else None
        ctx.kinds = [one.dtype for one in (states, *values)]
        ctx.save_for_backward(*grads)
        return _total(found)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        """The gradients that are known, times that of the loss."""
        kept = zip(ctx.saved_tensors, ctx.kinds, strict=True)
        return None, *((one * outer[0]).to(kind) if one is not None else None for one, kind in kept)


def _total(losses: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(losses).double().sum().to(losses[0].dtype)


def _at_least_float32(value: torch.Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


def _cross_entropy(logits: torch.Tensor, _: Any, targets: torch.Tensor) -> torch.Tensor:
    return F.nll_loss(_log_softmax(logits), targets, reduction="none")


def _agrees(student: torch.Tensor, teacher: torch.Tensor | TopLogits | None, _: torch.Tensor) -> torch.Tensor:
    first = teacher.indices[..., 0] if isinstance(teacher, TopLogits) else _known(teacher).argmax(-1)
    return student.argmax(-1) == first


def _kl(student: torch.Tensor, teacher: torch.Tensor | TopLogits | None, _: torch.Tensor) -> torch.Tensor:
    log_q = _log_softmax(student)
    if not isinstance(teacher, TopLogits):
        return F.kl_div(log_q, _log_softmax(_known(teacher)), reduction="none", log_target=True).sum(-1)
    log_p, tokens = teacher.values.to(log_q.dtype), teacher.indices
    kept = F.kl_div(log_q.gather(-1, tokens), log_p, reduction="none", log_target=True).sum(-1)
    if tokens.shape[-1] == log_q.shape[-1]:
        return kept
    rest = torch.ones_like(log_q, dtype=torch.bool).scatter(-1, tokens, False)
    log_rest_q = log_q.masked_fill(~rest, float("-inf")).logsumexp(-1)
    rest_p = 1.0 - log_p.double().exp().sum(-1)  # where that rounds to zero: the smallest normal number
    log_rest_p = rest_p.clamp_min(torch.finfo(torch.float32).tiny).log().to(log_p.dtype)
    return kept + F.kl_div(log_rest_q, log_rest_p, reduction="none", log_target=True)


def _known(teacher: torch.Tensor | None) -> torch.Tensor:
    assert teacher is not None
    return teacher


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
