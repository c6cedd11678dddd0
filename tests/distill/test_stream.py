# SPDX-License-Identifier: Apache-2.0
"""Stream matching against a loop written by hand, with the hand-written FarSkip form as the student."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from farskip_compile import ConfigError
from farskip_compile.healing.causal.asking import ModelOutput
from farskip_compile.healing.causal.batches import as_batch
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.distill import self_distill
from farskip_compile.healing.distill.stream import mismatch, stream_layers
from tests.compare import relative_difference
from tests.distill.common import EAGER, VOCABULARY, batches, weights
from tests.distributed.ranks import run_ranks

HELD_OUT = batches(1, seed=7)
STEPS, WEIGHT, RATE = 4, 3.0, 1e-3
CPU = torch.device("cpu")


class Layer(nn.Module):
    """Attention and two experts, of which a router picks one for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.mixes, self.reads = nn.RMSNorm(8), nn.RMSNorm(8)
        self.query, self.out = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.router, self.experts = nn.Linear(8, 2, bias=False), nn.Parameter(torch.randn(2, 8, 8) / 2)

    def attention(self, x):
        h = self.mixes(x)
        return self.out(nn.functional.scaled_dot_product_attention(self.query(h), h, h, is_causal=True))

    def moe(self, x):
        h = self.reads(x)
        gate, chosen = self.router(h).softmax(-1).topk(1)
        return (h[..., None, None, :] @ self.experts[chosen]).flatten(-3) * gate

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.moe(x)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm = nn.Embedding(VOCABULARY, 8), nn.RMSNorm(8)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        self.double()

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))

    def original(self, ids):
        """Logits, and the stream behind each layer."""
        x, streams = self.embed(ids), []
        for layer in self.layers:
            x = layer(x)
            streams.append(x)
        return self.head(self.norm(x)), streams

    def farskip(self, ids):
        """The same under `full`: an MLP does not see the attention of its layer, an attention not the MLP before it."""
        e = self.embed(ids)
        first, second = self.layers
        a0, m0 = first.attention(e), first.moe(e)
        a1, m1 = second.attention(e + a0), second.moe(e + a0 + m0)
        streams = [e + a0 + m0, e + a0 + m0 + a1 + m1]
        return self.head(self.norm(streams[1])), streams


def by_hand(model, steps, *, accumulate=1):
    """Batches as mappings; the paper's recipe with the mismatch of the streams."""
    teacher = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.95), weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        mine = steps[step * accumulate : (step + 1) * accumulate]
        optimizer.param_groups[0]["lr"] = RATE * float(0.5 * (1 + torch.tensor(torch.pi * step / STEPS).double().cos()))
        tokens = sum(int((one["labels"][:, 1:] != -100).sum()) for one in mine)
        kl, apart = 0.0, 0.0
        for one in mine:
            chosen = one["labels"][:, 1:] != -100
            logits, streams = model.farskip(one["input_ids"])
            with torch.no_grad():
                theirs, originals = teacher.original(one["input_ids"])
            q, p = (x[:, :-1][chosen].log_softmax(-1) for x in (logits, theirs))
            kl = kl + (p.exp() * (p - q)).sum() / tokens
            here = [
                ((s - t)[:, :-1][chosen] ** 2).sum() / (t[:, :-1][chosen] ** 2).sum()
                for s, t in zip(streams, originals, strict=True)
            ]
            apart = apart + sum(here) / len(here) * chosen.sum() / tokens
        (kl + WEIGHT * (1 - step / STEPS) * apart).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((kl.item(), apart.item(), norm.item()))
    return losses


def masked(count):
    found = []
    for number, ids in enumerate(batches(count)):
        labels = ids.clone()
        labels[0, : number % 4] = -100
        found.append({"input_ids": ids, "labels": labels})
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_the_loop_written_by_hand(accumulate, tmp_path):
    model, oracle, data = Tiny(), Tiny(), masked(STEPS * accumulate)
    expected = by_hand(oracle, data, accumulate=accumulate)
    self_distill(
        model, data, held_out=HELD_OUT, steps=STEPS, learning_rate=RATE, stream_weight=WEIGHT, options=EAGER,
        evaluate_every=STEPS, accumulate=accumulate, output=tmp_path, logits_memory=3 * VOCABULARY * 8,
    )  # fmt: skip
    told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][1:]
    for line, (loss, apart, norm) in zip(told, expected, strict=True):
        assert line["loss"] == pytest.approx(loss, rel=1e-9)
        assert line["stream"] == pytest.approx(apart, rel=1e-9)
        assert line["gradient_norm"] == pytest.approx(norm, rel=1e-9)
    assert min(apart for _, apart, _ in expected) > 1e-3
    last = load_file(tmp_path / f"state-{STEPS:08}" / "rank-0.safetensors")
    for name, value in weights(oracle).items():
        assert relative_difference(last[f"value/{name}"], value) < 1e-6, name


class Skipping(Tiny):
    """Its second layer is given something else than the first one returned."""

    def forward(self, ids):
        x = self.layers[0](self.embed(ids))
        return self.head(self.norm(self.layers[1](2.0 * x)))


class Loose(nn.Module):
    """No list of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.only, self.head = nn.Embedding(VOCABULARY, 8), Layer(), nn.Linear(8, VOCABULARY)

    def forward(self, ids):
        return self.head(self.only(self.embed(ids)))


@pytest.mark.parametrize(
    ("model", "words"),
    [(Skipping, "layers.0 to layers.1 do not run once each"), (Loose, "no repeated layers were found")],
)
def test_layers_that_can_not_be_told(model, words):
    with pytest.raises(ConfigError, match=words) as caught:
        stream_layers(model(), as_batch(HELD_OUT[0], CPU))
    assert "stream_weight=0" in caught.value.way_out


def test_layers_are_found_by_what_they_do():
    model = Tiny()
    assert stream_layers(model, as_batch(HELD_OUT[0], CPU)) == list(model.layers)


@pytest.mark.parametrize("more", [{"teacher": "cache", "output": "there"}, {"objective": "next_token"}])
def test_without_a_teacher_that_has_a_stream_it_is_refused(more):
    with pytest.raises(ConfigError, match="no residual stream to match"):
        self_distill(Tiny(), batches(1), held_out=HELD_OUT, steps=1, stream_weight=1.0, **more)


def streams(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 6, 8, generator=generator, dtype=torch.float64) for _ in range(2)]


TARGETS = torch.tensor([[1, 2, -100, 4, 5], [1, -100, -100, -100, 2], [3, 3, 3, 3, 3]])


def on_rank(rank, world_size):
    """The first sequence is the first rank's, the others are the second one's."""
    mine = slice(0, 1) if rank == 0 else slice(1, 3)
    ours, theirs = (ModelOutput(torch.zeros(1), None, tuple(one[mine] for one in streams(seed))) for seed in (0, 1))
    part, tokens = mismatch(ours, theirs, TARGETS[mine], TrainingRanks(nn.Linear(1, 1)))
    return part.item(), tokens


def test_parts_of_ranks_add_up():
    chosen = TARGETS != -100
    expected = sum(
        ((s - t)[:, :-1][chosen] ** 2).sum() / (t[:, :-1][chosen] ** 2).sum()
        for s, t in zip(streams(0), streams(1), strict=True)
    )
    found = run_ranks(on_rank, 2)
    assert sum(part for part, _ in found) == pytest.approx(expected.item() / 2, rel=1e-12)
    assert [tokens for _, tokens in found] == [11, 11]
