"""What other systems published that overlap the exchanges of an unchanged model, and predictions for the same settings.

In:    nothing, or plain data of an earlier run.
Out:   an `OtherRow` for each system: the speed-up that it published, and those predicted with exchanges in two pieces.
Never: fits anything; predicts another system's schedule: ours in two pieces is the nearest that there is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from common import each_in_a_process, markdown

from farskip_compile.simulate import Scenario

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


def _qwen3(ep: int, sequences: int, tokens: int) -> Callable[[], Scenario]:
    return lambda: Scenario(
        model="qwen3-30b-a3b",
        device="h100",
        ep=ep,
        phase="train",
        prompt=tokens,
        batch=sequences * ep,
        pieces=PIECES,
    )


OTHERS = (
    Other(
        "megatron-chunked",
        "Qwen3-30B-A3B, Megatron, 16 x H100, EP8, 16384 tokens on a rank",
        "two chunks of tokens in each MoE, DeepEP",
        _qwen3(8, 1, 16384),
        69.906 / 61.575,
        "https://github.com/NVIDIA/Megatron-LM/pull/7342",
        "each layer is computed once more in backward there, not here; optimizer step and reduction of gradients are "
        "in the published time and not in ours; how the tokens form sequences: one here",
    ),
    Other(
        "megatron-1f1b",
        "Qwen3-30B-A3B, Megatron Bridge, 16 x H100, EP16, 1 sequence of 4096 tokens on a rank",
        "forward of one micro-batch beside backward of another, HybridEP",
        _qwen3(16, 1, 4096),
        287.305 / 240.110,
        "https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/5094",
        "two micro-batches are needed for it, one step here has one; CUDA graphs; optimizer step and reduction of "
        "gradients as above",
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


def predict_others(workers: int) -> list[OtherRow]:
    return each_in_a_process(_predict, range(len(OTHERS)), workers)


def _predict(index: int) -> OtherRow:
    from farskip_compile.simulate import predict

    found = predict(OTHERS[index].scenario())
    unchanged, rewired = (found.also[f"{name}, {PIECES} pieces"] for name in ("overlapped", "FarSkip"))
    return OtherRow(
        OTHERS[index].name,
        written=found.written.seconds,
        communication=found.written.communication,
        overlapped=found.scheduled_speedup,
        cut=found.written.seconds / unchanged.seconds,
        farskip=found.speedup,
        farskip_cut=found.written.seconds / rewired.seconds,
        took=found.took["model"] + found.took["graphs"] + found.took["orders"],
    )


def others_table(rows: list[OtherRow]) -> list[str]:
    """The table, and what stands behind each line."""
    head = "system | >published | >overlapped | >in 2 pieces | >FarSkip | >FarSkip, 2 pieces | >as written"
    lines, notes = [], []
    for row in rows:
        known = next(one for one in OTHERS if one.name == row.name)
        speeds = [f"{one:.3f} x" for one in (known.speedup, row.overlapped, row.cut, row.farskip, row.farskip_cut)]
        lines.append([row.name, *speeds, f"{1e3 * row.written:.0f} ms", f"{row.communication / row.written:.0%}"])
        notes.append(f"- {known.name}: {known.where}; {known.mechanism}: {known.source}. Open: {known.open_points}.")
    return [*markdown(f"{head} | >communication", lines), "", *notes]
