"""How far a student is from its teacher, or from the text.

Contract: sums over target tokens, not means, so that ranks and accumulated batches can be combined. Never: a softmax in
less than float32.

`forward_kl` is eq. 4 of arXiv 2511.11505 (section 2.2): the sum over targets t of
KL(p_teacher(. | <t) || p_student(. | <t)). From the k largest logits of a teacher it is the KL of k + 1 outcomes, the
last of which is "any other token": never more than the KL over the whole vocabulary, and equal to it where k is the
size of the vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from farskip_compile.distill.batches import IGNORED
from farskip_compile.distill.teacher import TopLogits


def forward_kl(student: torch.Tensor, teacher: torch.Tensor | TopLogits, targets: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) in nats, summed over the positions that have a target."""
    chosen = targets != IGNORED
    log_q = _log_softmax(student[:, :-1][chosen])
    if isinstance(teacher, torch.Tensor):
        log_p = _log_softmax(teacher[:, :-1][chosen])
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    log_p, tokens = teacher.values[chosen].to(log_q.dtype), teacher.indices[chosen]
    kept = F.kl_div(log_q.gather(-1, tokens), log_p, reduction="sum", log_target=True)
    if tokens.shape[-1] == log_q.shape[-1]:
        return kept
    rest = torch.ones_like(log_q, dtype=torch.bool).scatter(-1, tokens, False)
    log_rest_q = log_q.masked_fill(~rest, float("-inf")).logsumexp(-1)
    rest_p = 1.0 - log_p.double().exp().sum(-1)  # where that rounds to zero: the smallest normal number
    log_rest_p = rest_p.clamp_min(torch.finfo(torch.float32).tiny).log().to(log_p.dtype)
    return kept + F.kl_div(log_rest_q, log_rest_p, reduction="sum", log_target=True)


def next_token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the targets in nats, summed."""
    log_q = _log_softmax(logits[:, :-1]).flatten(0, 1)
    return F.nll_loss(log_q, targets.flatten(), ignore_index=IGNORED, reduction="sum")


def agreement(student: torch.Tensor, teacher: torch.Tensor | TopLogits, targets: torch.Tensor) -> torch.Tensor:
    """The number of positions with a target at which both give the largest probability to the same token."""
    first = teacher[:, :-1].argmax(-1) if isinstance(teacher, torch.Tensor) else teacher.indices[..., 0]
    return ((student[:, :-1].argmax(-1) == first) & (targets != IGNORED)).sum()


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
