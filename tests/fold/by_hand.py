# SPDX-License-Identifier: Apache-2.0
"""A small MoE model and its fold, written by hand: every value is computed anew for every question, by plain loops."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

LAYERS, WIDTH, EXPERTS, INNER, VOCABULARY = 3, 12, 3, 10, 24
RIDGES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER) / 3)  # features in the middle
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER) / 3)

    def attention(self, n: torch.Tensor) -> torch.Tensor:
        return self.o(F.scaled_dot_product_attention(self.q(n), self.k(n), self.v(n), is_causal=True))

    def experts(self, n: torch.Tensor) -> torch.Tensor:
        gate, chosen = self.router(n).softmax(-1).topk(1)
        inner = F.silu(torch.einsum("bth,bthi->bti", n, self.up[chosen[..., 0]]))
        return gate * torch.einsum("bti,bthi->bth", inner, self.down[chosen[..., 0]])


class Model(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.double()
        with torch.no_grad():
            for value in self.parameters():
                value.mul_(1.3).add_(0.05 * torch.randn_like(value))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer.attention(layer.norm_1(x))
            x = x + layer.experts(layer.norm_2(x))
        return self.head(self.norm(x))


def forms(model: Model, ids: torch.Tensor, *, farskip: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits; and what each sub-block reads (`attention.1`) and adds (`attention.1 out`)."""
    seen = {}
    x = n = model.embed(ids)
    for number, layer in enumerate(model.layers):
        read = seen[f"attention.{number}"] = layer.norm_1(n if farskip else x)
        a = seen[f"attention.{number} out"] = layer.attention(read)
        read = seen[f"moe.{number}"] = layer.norm_2(x if farskip else x + a)
        r = seen[f"moe.{number} out"] = layer.experts(read)
        n = x + a
        x = n + r
    return model.head(model.norm(x)), seen


def kl(teacher: Model, student: Model, batches: list[torch.Tensor]) -> float:
    ids = torch.cat(batches)
    p, q = (
        forms(model, ids, farskip=farskip)[0][:, :-1].log_softmax(-1)
        for model, farskip in ((teacher, False), (student, True))
    )
    return (p.exp() * (p - q)).sum(-1).mean().item()


def matrix_of(now: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
    """The ridge is chosen on each fourth row of each batch; then all rows are fitted."""
    last = torch.arange(now.shape[1]) % 4 == 3
    flat = [value.flatten(0, 1) for value in (now[:, ~last], then[:, ~last], now[:, last], then[:, last])]

    def fit(a: torch.Tensor, b: torch.Tensor, ridge: float) -> torch.Tensor:
        """Least squares with rows for the ridge."""
        weight = (ridge * a.square().sum(0).mean()).sqrt() * torch.eye(WIDTH, dtype=a.dtype)
        return torch.linalg.lstsq(torch.cat([a, weight]), torch.cat([b, weight])).solution

    errors = [((flat[3] - flat[2] @ fit(*flat[:2], ridge)) ** 2).sum().item() for ridge in RIDGES]
    best = RIDGES[errors.index(min(errors))]
    return fit(now.flatten(0, 1), then.flatten(0, 1), best)


ROWS = [(number, name) for number in range(LAYERS) for name in ("attention", "moe")]


@torch.no_grad()
def folded(
    model: Model, calibration: list[torch.Tensor], held_out: list[torch.Tensor], *, outputs: bool
) -> tuple[Model, list[bool]]:
    """The model folded, and which changes were accepted."""
    teacher, student = copy.deepcopy(model), copy.deepcopy(model)
    verdicts, best = [], kl(teacher, student, held_out)

    def seen(key: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Now, and in the original: [batches, tokens, width]."""
        size = calibration[0].numel()
        pairs = ((student, True), (teacher, False))
        now, then = (
            torch.stack([forms(one, ids, farskip=far)[1][key].reshape(size, WIDTH) for ids in calibration])
            for one, far in pairs
        )
        return now, then

    for place, (number, name) in enumerate(ROWS[1:], start=1):
        layer = student.layers[number]
        for out in (False, True) if outputs else (False,):
            now, then = seen(f"{name}.{number} out" if out else f"{name}.{number}")
            if out:  # what earlier terms lack is for this one to add
                for before, kind in ROWS[:place]:
                    mine, theirs = seen(f"{kind}.{before} out")
                    then = then + theirs - mine
            matrix, kept = matrix_of(now, then), copy.deepcopy(student.state_dict())
            if name == "attention" and out:
                layer.o.weight.copy_(matrix.T @ layer.o.weight)
            elif name == "attention":
                for linear in (layer.q, layer.k, layer.v):
                    linear.weight.copy_(linear.weight @ matrix.T)
            elif out:
                for expert in range(EXPERTS):
                    layer.down[expert] = matrix.T @ layer.down[expert]
            else:
                layer.router.weight.copy_(layer.router.weight @ matrix.T)
                for expert in range(EXPERTS):
                    layer.up[expert] = matrix @ layer.up[expert]
            after = kl(teacher, student, held_out)
            verdicts.append(after < best)
            if after < best:
                best = after
            else:
                student.load_state_dict(kept)
    return student, verdicts
