# SPDX-License-Identifier: Apache-2.0
"""What other systems published that overlap the exchanges of an unchanged model, and predictions for the same settings.

In:    nothing, or plain data of an earlier run.
Out:   an `OtherRow` for each system: the speed-up that it published, and those predicted with exchanges in two pieces
       and, of a system that overlaps two micro-batches, in two micro-batches.
Never: fits anything; predicts another system's schedule: the nearest of ours stands for it.

Two micro-batches are compared with one of them as written, twice. Ours go forward side by side, and then backward side
by side; a system that puts forward of one beside backward of another has as much to compute beside each exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from common import each_in_a_process, markdown

from farskip_compile.measure.simulate import Scenario

PIECES = 2


@dataclass(frozen=True)
class Other:
    """One published comparison."""

    name: str
    where: str
    """Model, engine and hardware, in words."""
    mechanism: str
    scenario: Callable[[], Scenario]
    speedup: float
    source: str
    open_points: str
    pair: Callable[[], Scenario] | None = None
    """Two micro-batches together, each as large as `scenario`; None: the system does not overlap any."""


def _qwen3(ep: int, sequences: int, tokens: int, **parts: int) -> Callable[[], Scenario]:
    return lambda: Scenario(
        model="qwen3-30b-a3b",
        device="h100",
        ep=ep,
        phase="train",
        prompt=tokens,
        batch=sequences * ep,
        **parts,
    )


OTHERS = (
    Other(
        "megatron-chunked",
        "Qwen3-30B-A3B, Megatron, 16 x H100, EP8, 16384 tokens on a rank",
        "two chunks of tokens in each MoE, DeepEP",
        _qwen3(8, 1, 16384, pieces=PIECES),
        69.906 / 61.575,
        "https://github.com/NVIDIA/Megatron-LM/pull/7342",
        "each layer is computed once more in backward there, not here; optimizer step and reduction of gradients are "
        "in the published time and not in ours; how the tokens form sequences: one here",
    ),
    Other(
        "megatron-1f1b",
        "Qwen3-30B-A3B, Megatron Bridge, 16 x H100, EP16, 1 sequence of 4096 tokens on a rank",
        "forward of one micro-batch beside backward of another, HybridEP",
        _qwen3(16, 1, 4096, pieces=PIECES),
        287.305 / 240.110,
        "https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/5094",
        "in 2 batches: two micro-batches, over one as written twice; the other columns: one micro-batch; CUDA graphs; "
        "optimizer step and reduction of gradients as above",
        _qwen3(16, 2, 4096, micro_batches=2),
    ),
)


@dataclass(frozen=True)
class OtherRow:
    """A published comparison, and what is predicted. Speed-ups are over the model as written."""

    name: str
    written: float
    """Seconds."""
    communication: float
    overlapped: float
    cut: float
    """Unchanged, exchanges in pieces."""
    farskip: float
    farskip_cut: float
    took: float
    batches: float | None = None
    """Unchanged, in two micro-batches."""
    farskip_batches: float | None = None


def predict_others(workers: int) -> list[OtherRow]:
    return each_in_a_process(_predict, range(len(OTHERS)), workers)


def _predict(index: int) -> OtherRow:
    from farskip_compile.measure.simulate import predict

    known = OTHERS[index]
    found, pair = predict(known.scenario()), predict(known.pair()) if known.pair is not None else None
    unchanged, rewired = (found.also[f"{name}, {PIECES} pieces"] for name in ("overlapped", "FarSkip"))
    batches, rewired_batches = (
        2 * found.written.seconds / pair.also[f"{name}, 2 batches"].seconds if pair is not None else None
        for name in ("overlapped", "FarSkip")
    )
    return OtherRow(
        known.name,
        written=found.written.seconds,
        communication=found.written.communication,
        overlapped=found.scheduled_speedup,
        cut=found.written.seconds / unchanged.seconds,
        farskip=found.speedup,
        farskip_cut=found.written.seconds / rewired.seconds,
        took=sum(one.took[part] for one in (found, pair) if one is not None for part in ("model", "graphs", "orders")),
        batches=batches,
        farskip_batches=rewired_batches,
    )


def others_table(rows: list[OtherRow]) -> list[str]:
    """The table, and what stands behind each line."""
    head = (
        "system | >published | >overlapped | >in 2 pieces | >in 2 batches | >FarSkip | >FarSkip, 2 pieces | "
        ">FarSkip, 2 batches | >as written"
    )
    lines, notes = [], []
    for row in rows:
        known = next(one for one in OTHERS if one.name == row.name)
        unchanged, rewired = (row.overlapped, row.cut, row.batches), (row.farskip, row.farskip_cut, row.farskip_batches)
        speeds = [f"{one:.3f} x" if one is not None else "" for one in (known.speedup, *unchanged, *rewired)]
        lines.append([row.name, *speeds, f"{1e3 * row.written:.0f} ms", f"{row.communication / row.written:.0%}"])
        notes.append(f"- {known.name}: {known.where}; {known.mechanism}: {known.source}. Open: {known.open_points}.")
    return [*markdown(f"{head} | >communication", lines), "", *notes]
